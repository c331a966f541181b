"""SFTTrainer: executes a schedule step by step, evaluates and saves on the way."""

import contextlib
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from finetooth.base.devices import DeviceManager
from finetooth.base.distributed import ALONE, Ranks
from finetooth.base.errors import (
    ConfigError,
    NonFiniteError,
    problem,
)
from finetooth.base.stopping import CutShort, StopRequest
from finetooth.base.terminal import print_line
from finetooth.batching.packing import Layout, layout_of
from finetooth.batching.schedule import Step, schedule_of
from finetooth.config.schema import SFTConfig
from finetooth.data.preparation import prepare_data
from finetooth.data.records import DocumentSource
from finetooth.data.templates.template import Template
from finetooth.model.load import refuse_misfits
from finetooth.model.policy import PolicyModel
from finetooth.model.start import start_policy
from finetooth.training.checkpoint import Checkpoint, CheckpointManager, TrainingState, restore_optimizer
from finetooth.training.examination import Examination, in_words
from finetooth.training.guards import REMEMBERED_LOSSES, highest_losses, usual_loss
from finetooth.training.memory import telling_what_loads
from finetooth.training.metrics import MetricsLog
from finetooth.training.optimizer import create_optimizer, num_warmup_steps
from finetooth.training.parallel import distribute
from finetooth.training.progress import ProgressView
from finetooth.training.resuming import (
    Change,
    changes_since,
    identity_of,
    refuse_changes,
    require_same_states,
    require_steps_ahead,
)
from finetooth.training.updates import Updates

# Skipping more steps than this hides that a run goes wrong.
MOST_SKIPPED = 10


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a run gives: the trained policy, metrics.jsonl (on rank 0), and where it ended.

    stopped: the exit code of the signal that stopped the run early, else None.
    """

    policy: PolicyModel
    metrics: MetricsLog
    last_step: int
    stopped: int | None

    @property
    def history(self) -> list[dict[str, Any]]:
        """Every line of metrics.jsonl; `metrics.each_line()` gives them one by one."""
        return self.metrics.lines()


class SFTTrainer:
    """Trains a policy on documents as the config says.

    config:   every setting; metrics.jsonl, checkpoints/ and samples/ are written to its `output_dir`.
    policy:   the model, on the devices' device; default: loaded as the config says.
    train:    the documents; default: prepared as the config says, and `dev` and `template` with them.
    dev:      documents for dev_loss and exact match.
    template: decodes and ends answers; needed for exact match only.
    devices:  default: as the config says. console: where progress is shown; default: nowhere.
    ranks:    this process among those of the run; every one of them must do the same.
    auto_fit: rows become shorter where the device's memory does not hold them.
    """

    def __init__(
        self,
        config: SFTConfig,
        *,
        policy: PolicyModel | None = None,
        train: DocumentSource | None = None,
        dev: DocumentSource | None = None,
        template: Template | None = None,
        devices: DeviceManager | None = None,
        ranks: Ranks = ALONE,
        console: Console | None = None,
        auto_fit: bool = False,
    ):
        self.config = config
        self.ranks = ranks
        self.console = console or Console(quiet=True)
        self.devices = devices or DeviceManager(config.training.device, config.training.precision)
        documents = train
        if documents is None:
            prepared = prepare_data(config, console=self.console)
            documents, dev, template = prepared.train_documents, prepared.dev, prepared.template
        if config.evaluation.exact_match is not None and template is None:
            raise ConfigError(problem("evaluation.exact_match", "no template was given", "pass template="))
        self.train_documents = documents
        self.dev_documents = dev
        self.template = template
        if policy is None:
            with telling_what_loads(self.devices, is_sharded=config.parallel.shard is not None):
                policy, _ = start_policy(config, template, devices=self.devices)
        self.policy = policy
        policy.set_dropout(config.training.dropout)
        layout = layout_of(config.training, can_pack=policy.why_not_packed is None)
        self._refuse_misfits(layout)
        self.schedule = schedule_of(config.training, documents)
        self.warmup_steps = num_warmup_steps(config.training.warmup_steps, self.schedule.num_steps)
        if self.warmup_steps >= self.schedule.num_steps > 1:
            fact = f"{self.warmup_steps} steps of warm-up in a run of {self.schedule.num_steps} steps"
            raise ConfigError(problem("training.warmup_steps", fact, "write fewer, or a share such as 0.03"))
        output = Path(config.output_dir)
        self.metrics = MetricsLog(output / "metrics.jsonl", is_written=ranks.is_first)
        self.checkpoints = CheckpointManager(
            output / "checkpoints",
            keep=config.checkpoints.keep,
            ranks=ranks,
            background=config.checkpoints.background,
        )
        shared = distribute(self.policy, ranks, parallel=config.parallel, devices=self.devices)
        self.examination = Examination(
            policy,
            documents,
            dev,
            template,
            config,
            self.devices,
            ranks,
            samples=output / "samples",
        )
        self.optimizer = create_optimizer(
            self.policy,
            learning_rate=config.training.learning_rate,
            weight_decay=config.training.weight_decay,
            betas=(config.training.adam_beta1, config.training.adam_beta2),
            epsilon=config.training.adam_epsilon,
            kind=config.training.optimizer,
            offload=config.parallel.offload_optimizer,
            seed=config.training.seed,
        )
        self.scaler = self.devices.gradient_scaler()
        self.state = TrainingState(next_step=1, identity=self.identity())
        self.changes: list[Change] = []
        self.updates = Updates(
            config.training,
            self.schedule,
            documents,
            shared,
            self.optimizer,
            self.scaler,
            self.devices,
            layout,
            self.warmup_steps,
            auto_fit,
            self.console,
        )

    def take_up(self, checkpoint: Checkpoint, *, accept_changes: bool = False) -> None:
        """Goes on behind a checkpoint, whose parameters the policy must hold (`load_policy` of its folder).

        Raises ConfigError where it is a checkpoint of another run, unless its changes are accepted.
        """
        identity = self.identity()
        changes = changes_since(checkpoint, identity)
        if changes and not accept_changes:
            raise refuse_changes(changes, checkpoint)
        require_same_states(checkpoint, identity)
        require_steps_ahead(checkpoint, self.schedule.num_steps)
        restore_optimizer(checkpoint, policy=self.policy, optimizer=self.optimizer)
        if checkpoint.state.scaler:
            self.scaler.load_state_dict(checkpoint.state.scaler)
        self.state = replace(checkpoint.state, identity=identity)
        self.changes = changes
        is_comparable = all(change.name != "dev documents" for change in changes)
        if not is_comparable or not self.checkpoints.holds(self.state.best_step):
            self.state = replace(self.state, best_step=None, best_dev_loss=None)

    @property
    def is_finished(self) -> bool:
        """Whether no step is left to be done."""
        return self.state.next_step > self.schedule.num_steps

    def train(self, stop: StopRequest | None = None) -> TrainResult:
        """Trains from the first step, or from where `take_up` left off; returns the policy and the history.

        stop: listens to signals already; default: SIGTERM, SIGUSR1 and SIGINT are listened to here. They
        end the run after the step, saved.
        Raises NonFiniteError where a loss or gradient is not finite.
        """
        first, last = self.state.next_step, self.schedule.num_steps
        self._leave_behind(first - 1)
        self.policy.train()
        view = ProgressView(self.console, first_step=first, num_steps=last)
        with contextlib.ExitStack() as stack:
            if stop is None:
                stop = stack.enter_context(StopRequest().listening())
                stop.hold()
            stack.enter_context(self.checkpoints.finishing())
            stack.enter_context(view)
            if not self.is_finished:
                self.updates.rehearse(first=first)
            stopped = self._catch_up(stop, view)
            if stopped is None:
                stopped = self._train_steps(first, stop, view)
        return TrainResult(self.policy, self.metrics, self.state.next_step - 1, stopped)

    def _catch_up(self, stop: StopRequest, view: ProgressView) -> int | None:
        """Evaluates what comes before the first step: step 0, or the last one where a signal cut it short."""
        done = self.state.next_step - 1
        is_due = done == 0 or done == self.schedule.num_steps or _is_due(done, self.config.evaluation.every)
        if not is_due or self._is_evaluated(done):
            return None if done == self.schedule.num_steps else self._agree_on_stop(stop)
        if not self._evaluate(done, view, stop):
            return self._agree_on_stop(stop)
        if done > 0 and self.state.best_step == done:
            self._save(done)
        return None

    def _train_steps(self, first: int, stop: StopRequest, view: ProgressView) -> int | None:
        last = self.schedule.num_steps
        for step in self.schedule.steps(first):
            self.update(step, view)
            is_last = step.number == last
            is_finished = False
            if is_last or _is_due(step.number, self.config.evaluation.every):
                is_finished = self._evaluate(step.number, view, stop) and is_last
            stopped = self._agree_on_stop(stop)
            is_best = self.state.best_step == step.number
            is_due = _is_due(step.number, self.config.checkpoints.every)
            if is_last or is_best or is_due or stopped is not None:
                self._save(step.number)
                stopped = stopped or self._agree_on_stop(stop)  # asked while saving: no further step
            if is_finished:
                return None
            if stopped is not None:
                return stopped
        return None

    def _agree_on_stop(self, stop: StopRequest) -> int | None:
        """The exit code of a signal that any rank has got, so that all end after the same step."""
        with self.ranks.doing(f"step {self.state.next_step - 1}, agreeing to go on"):
            code = self.ranks.highest(0 if stop.signal is None else stop.exit_code)
        return code or None

    def update(self, step: Step, view: ProgressView) -> None:
        """Trains one step, notes it in metrics.jsonl and shows it; evaluates and saves nothing.

        Raises NonFiniteError where the settings do not pass over such a step.
        """
        self.checkpoints.check()
        started = time.perf_counter()
        place = {"step": step.number, "epoch": round(step.number / self.schedule.steps_per_epoch, 4)}
        try:
            result = self.updates.train(step)
        except NonFiniteError as error:
            self._skip(error)
            self.metrics.append({**place, "skipped": error.problems})
            view.note(f"step {step.number} skipped: {error.problems[0].partition(': ')[2]}")
            return
        seconds = time.perf_counter() - started
        spike = self._spike(step, result.loss)
        recent = [*self.state.recent_losses, result.loss][-REMEMBERED_LOSSES:]
        self.state = replace(self.state, next_step=step.number + 1, recent_losses=recent)
        view.step(
            step.number,
            loss=result.loss,
            learning_rate=self.updates.learning_rate(step.number),
            num_tokens=step.num_tokens,
            seconds=seconds,
        )
        is_last = step.number == self.schedule.num_steps
        if is_last or spike or _is_due(step.number, self.config.logging.every):
            self.metrics.append(
                {
                    **place,
                    "loss": result.loss,
                    "learning_rate": self.updates.learning_rate(step.number),
                    "grad_norm": result.grad_norm,
                    "num_documents": len(step.documents),
                    "num_targets": step.num_targets,
                    "num_tokens": step.num_tokens,
                    "seconds": round(seconds, 4),
                    "time": round(time.time(), 3),
                    "peak_memory_mb": round(self.devices.peak_memory_mb(), 1),
                    **({"row_tokens": self.updates.layout.row_tokens} if self.updates.auto_fit else {}),
                    **spike,
                }
            )

    def identity(self) -> dict[str, Any]:
        """Everything that decides the trajectory; layout, logging and saving do not."""
        return identity_of(
            self.config,
            documents=self.train_documents,
            dev=self.dev_documents,
            template=self.template,
            schedule=self.schedule,
            warmup_steps=self.warmup_steps,
            precision=self.devices.precision,
        )

    def _refuse_misfits(self, layout: Layout) -> None:
        sources = [source for source in (self.train_documents, self.dev_documents) if source is not None]
        longest = max(int(source.lengths.max()) for source in sources)
        tokenizer = None if self.template is None else self.template.tokenizer
        refuse_misfits(self.policy, tokenizer, longest_document=longest)
        if layout.packing and longest > layout.row_tokens:
            fact = f"rows hold {layout.row_tokens} tokens, the longest document has {longest}"
            raise ConfigError(problem("training.row_tokens", fact, f"write {longest} or more"))

    def _leave_behind(self, done: int) -> None:
        """Lets go of what a run beyond the step that was taken up has left, and tells what has changed."""
        self.metrics.forget_after(done if done > 0 else -1)  # step 0 is evaluated again, too
        for aside in self.checkpoints.set_aside_after(done, best_step=self.state.best_step):
            print_line(self.console, f"{aside}: set aside; the run goes on behind step {done}")
        if self.changes:
            for change in self.changes:
                print_line(self.console, f"from step {done + 1} on: {change.in_words()}")
            changes = {change.name: {"before": change.before, "now": change.now} for change in self.changes}
            self.metrics.append({"step": done + 1, "changes": changes})

    def _skip(self, error: NonFiniteError) -> None:
        """Passes over a step that cannot be trained, if the settings allow it; raises the error if not."""
        if self.config.training.on_non_finite == "stop":
            raise error
        if self.state.num_skipped >= MOST_SKIPPED:
            fact = f"{MOST_SKIPPED} steps were skipped before this one"
            remedy = "look at their documents in metrics.jsonl, or lower training.learning_rate"
            raise NonFiniteError([*error.problems, problem("training.on_non_finite", fact, remedy)])
        done, skipped = self.state.next_step, self.state.num_skipped
        self.state = replace(self.state, next_step=done + 1, num_skipped=skipped + 1)

    def _spike(self, step: Step, loss: float) -> dict[str, Any]:
        """What metrics.jsonl says of a loss far above those before it; documents are measured now."""
        usual = usual_loss(loss, self.state.recent_losses) if self.config.logging.spikes else None
        if usual is None:
            return {}
        numbers = step.documents.tolist()
        documents = highest_losses(self.policy, self.train_documents, numbers=numbers, devices=self.devices)
        return {"spike": {"usual_loss": usual, "documents": documents}}

    def _is_evaluated(self, step: int) -> bool:
        is_there = any(line["step"] == step and "train_loss" in line for line in self.metrics.each_line())
        return bool(self.ranks.highest(int(is_there)))

    def _evaluate(self, step: int, view: ProgressView, stop: StopRequest) -> bool:
        """Whether the evaluation went through; one that a signal cuts short leaves no trace."""
        line: dict[str, Any] = {"step": step}
        try:
            with self.ranks.doing(f"step {step}, evaluation"):
                line |= self.examination.examine(
                    step,
                    is_leaving=lambda: self._agree_on_stop(stop) is not None,
                    is_asked=lambda: stop.signal is not None,
                )
        except CutShort:
            return False
        self.metrics.append(line)
        self._note_best(step, line.get("dev_loss"))
        for text in in_words(line):
            view.note(text)
        return True

    def _note_best(self, step: int, dev_loss: float | None) -> None:
        best = self.state.best_dev_loss
        if dev_loss is not None and step > 0 and (best is None or dev_loss < best):
            self.state = replace(self.state, best_step=step, best_dev_loss=dev_loss)

    def _save(self, step: int) -> None:
        state = replace(self.state, scaler=self.scaler.state_dict())
        with self.ranks.doing(f"step {step}, saving"):
            self.metrics.sync()
            self.checkpoints.save(state, policy=self.policy, optimizer=self.optimizer)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
