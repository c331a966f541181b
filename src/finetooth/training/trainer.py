"""SFTTrainer: executes a schedule step by step, evaluates and saves on the way."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from finetooth.base.devices import DeviceManager
from finetooth.base.distributed import ALONE, Ranks
from finetooth.base.errors import NonFiniteError
from finetooth.base.stopping import CutShort, StopRequest
from finetooth.base.terminal import print_line
from finetooth.batching.packing import Layout, layout_of
from finetooth.batching.schedule import Step, schedule_of
from finetooth.config.figures import holds_best
from finetooth.config.schema import SFTConfig
from finetooth.data.preparation import prepare_data
from finetooth.data.records import DocumentSource
from finetooth.data.templates.template import Template
from finetooth.model.policy import PolicyModel
from finetooth.model.start import start_policy
from finetooth.training.best import why_ended_early, with_evaluation, without_best
from finetooth.training.checkpoint import Checkpoint, CheckpointManager, TrainingState, restore_optimizer
from finetooth.training.examination import Examination, in_words
from finetooth.training.garbage import STEPS_BETWEEN, collecting_between_steps
from finetooth.training.guards import REMEMBERED_LOSSES, highest_losses, require_skippable, usual_loss
from finetooth.training.memory import is_ample, telling_what_loads
from finetooth.training.metrics import MetricsLog, Reached
from finetooth.training.mirrors import Mirrors, open_mirrors, require_mirrors
from finetooth.training.optimizer import optimizer_for
from finetooth.training.parallel import distribute
from finetooth.training.progress import ProgressView
from finetooth.training.requirements import checked_warmup, require_fitting, require_measurable
from finetooth.training.resuming import (
    Change,
    changes_since,
    identity_of,
    is_best_comparable,
    refuse_changes,
    require_same_states,
    require_steps_ahead,
)
from finetooth.training.step import StepResult
from finetooth.training.time_left import TimeLeft
from finetooth.training.updates import Updates


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
        self.config, self.ranks = config, ranks
        if ranks.is_first:
            require_mirrors(config.logging)
        self.console = console if console and ranks.is_first else Console(quiet=True)
        self.devices = devices or DeviceManager(config.training.device, config.training.precision)
        if train is None:
            prepared = prepare_data(config, console=self.console)
            train, dev, template = prepared.train_documents, prepared.dev, prepared.template
        self.train_documents, self.dev_documents, self.template = train, dev, template
        require_measurable(config, dev, template)
        if policy is None:
            with telling_what_loads(self.devices, is_sharded=config.parallel.shard is not None):
                policy, _ = start_policy(config, template, devices=self.devices)
        self.policy = policy
        policy.set_dropout(config.training.dropout)
        layout = layout_of(config.training, can_pack=policy.why_not_packed is None)
        require_fitting(
            policy, [source for source in (train, dev) if source is not None], template, layout=layout
        )
        self.schedule = schedule_of(config.training, train)
        self.warmup_steps = checked_warmup(config.training, self.schedule)
        self._open(Path(config.output_dir))
        self._set_up(layout, auto_fit=auto_fit)

    def _open(self, output: Path) -> None:
        """What the run writes into its directory."""
        settings = self.config.checkpoints
        self.metrics = MetricsLog(output / "metrics.jsonl", is_written=self.ranks.is_first)
        self.mirrors = Mirrors({}, notify=partial(print_line, self.console))  # until it trains
        self.checkpoints = CheckpointManager(
            output / "checkpoints", keep=settings.keep, ranks=self.ranks, background=settings.background
        )

    def _set_up(self, layout: Layout, *, auto_fit: bool) -> None:
        """What trains and examines the policy, from the first step on."""
        config, ranks, devices = self.config, self.ranks, self.devices
        shared = distribute(self.policy, ranks, parallel=config.parallel, devices=devices)
        self.examination = Examination(
            self.policy,
            self.train_documents,
            self.dev_documents,
            self.template,
            config,
            devices,
            ranks,
            samples=Path(config.output_dir) / "samples",
        )
        self.optimizer = optimizer_for(self.policy, config)
        self.scaler = devices.gradient_scaler()
        self.state = TrainingState(next_step=1, identity=self.identity())
        self.changes: list[Change] = []
        self.updates = Updates(
            config.training,
            self.schedule,
            self.train_documents,
            shared,
            self.optimizer,
            self.scaler,
            devices,
            layout,
            self.warmup_steps,
            auto_fit,
            self.console,
            is_ample=partial(is_ample, self.policy, config, devices=devices, ranks=ranks),
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
        best = self.state.best_step
        if not is_best_comparable(changes) or (best is not None and not self.checkpoints.holds(best)):
            self.state = without_best(self.state)

    @property
    def is_finished(self) -> bool:
        """Whether no step is left, or none is done any more."""
        return self.state.next_step > self.schedule.num_steps or self.ended_early is not None

    @property
    def ended_early(self) -> str | None:
        """Why and after which step the run is over before its last one (`evaluation.patience`), or None."""
        return why_ended_early(self.state, self.config, num_steps=self.schedule.num_steps)

    @property
    def final_step(self) -> int | None:
        """The step whose policy `final/` is to hold: the last one done, or the best one if there is one."""
        is_best = holds_best(final=self.config.checkpoints.final, patience=self.config.evaluation.patience)
        return self.state.best_step if is_best else self.state.next_step - 1

    def train(self, stop: StopRequest | None = None) -> TrainResult:
        """Trains from the first step, or from where `take_up` left off; returns the policy and the history.

        stop: listens to signals already; default: SIGTERM, SIGUSR1 and SIGINT are listened to here. They
        end the run after the step, saved.
        Raises NonFiniteError where a loss or gradient is not finite.
        """
        first = self.state.next_step
        reached = self._leave_behind(first - 1)
        self.policy.train()
        with contextlib.ExitStack() as stack:
            if stop is None:
                stop = stack.enter_context(StopRequest().listening())
                stop.hold()
            stack.enter_context(self.checkpoints.finishing())
            self.mirrors = stack.enter_context(self._mirrored(reached))
            view = stack.enter_context(self._view())
            if not self.is_finished:
                self.updates.settle(first=first)
            collect = stack.enter_context(collecting_between_steps())
            stopped = self._catch_up(stop, view)
            if stopped is None:
                stopped = self._train_steps(first, stop, view, collect)
        return TrainResult(self.policy, self.metrics, self.state.next_step - 1, stopped)

    def _view(self) -> ProgressView:
        config, first, last = self.config, self.state.next_step, self.schedule.num_steps
        left = TimeLeft(last, evaluate_every=config.evaluation.every, save_every=config.checkpoints.every)
        return ProgressView(self.console, first_step=first, num_steps=last, left=left)

    def _mirrored(self, reached: Reached) -> Mirrors:
        return open_mirrors(
            self.config,
            self.metrics,
            reached=reached,
            done=self.state.next_step - 1,
            has_changed=bool(self.changes),
            notify=partial(print_line, self.console),
        )

    def _catch_up(self, stop: StopRequest, view: ProgressView) -> int | None:
        """Evaluates what comes before the first step: step 0, or the last one where a signal cut it short."""
        done = self.state.next_step - 1
        is_due = done in (0, self.schedule.num_steps) or _is_due(done, self.config.evaluation.every)
        if not is_due or self._is_evaluated(done):
            return None if self.is_finished else self._agree_on_stop(stop)
        if not self._evaluate(done, view, stop):
            return self._agree_on_stop(stop)
        if done > 0:
            self._save(done, view)  # or another start would not know of it
        return None

    def _train_steps(
        self, first: int, stop: StopRequest, view: ProgressView, collect: Callable[[], object]
    ) -> int | None:
        if self.is_finished:
            return None
        for step in self.schedule.steps(first):
            self.update(step, view)
            is_evaluated = self._is_evaluation_due(step.number) and self._evaluate(step.number, view, stop)
            stopped = self._agree_on_stop(stop)
            if self.is_finished or stopped is not None or self._is_save_due(step.number):
                self._save(step.number, view)
                stopped = stopped or self._agree_on_stop(stop)  # asked while saving: no further step
            if is_evaluated or step.number % STEPS_BETWEEN == 0:
                collect()
            if self.is_finished and is_evaluated:
                return None
            if stopped is not None:
                return stopped
        return None

    def _is_evaluation_due(self, step: int) -> bool:
        return step == self.schedule.num_steps or _is_due(step, self.config.evaluation.every)

    def _is_save_due(self, step: int) -> bool:
        return step == self.state.best_step or _is_due(step, self.config.checkpoints.every)

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
            skipped = self.state.num_skipped
            require_skippable(error, on_non_finite=self.config.training.on_non_finite, num_skipped=skipped)
            self.state = replace(self.state, next_step=step.number + 1, num_skipped=skipped + 1)
            self._record({**place, "skipped": error.problems})
            view.note(f"step {step.number} skipped: {error.problems[0].partition(': ')[2]}")
            return
        seconds = time.perf_counter() - started
        spike = self._spike(step, result.loss)
        recent = [*self.state.recent_losses, result.loss][-REMEMBERED_LOSSES:]
        self.state = replace(self.state, next_step=step.number + 1, recent_losses=recent)
        line = {**place, **self._figures(step, result, seconds), **spike}
        is_last = step.number == self.schedule.num_steps
        if is_last or spike or _is_due(step.number, self.config.logging.every):
            self._record(line)
        view.step(line)

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

    def _leave_behind(self, done: int) -> Reached:
        """Lets go of what a run beyond the step that was taken up has left, and tells what has changed.

        Returns how far that run went.
        """
        with self.ranks.agreeing("reading metrics.jsonl"):
            reached = self.metrics.forget_after(done, evaluated=self.state.evaluated if done > 0 else -1)
        for aside in self.checkpoints.set_aside_after(done, best_step=self.state.best_step):
            print_line(self.console, f"{aside}: set aside; the run goes on behind step {done}")
        if self.changes:
            for change in self.changes:
                print_line(self.console, f"from step {done + 1} on: {change.in_words()}")
            changes = {change.name: {"before": change.before, "now": change.now} for change in self.changes}
            self.metrics.append({"step": done + 1, "changes": changes})
        return reached

    def _record(self, line: dict[str, Any]) -> None:
        self.metrics.append(line)
        self.mirrors.write(line)

    def _figures(self, step: Step, result: StepResult, seconds: float) -> dict[str, Any]:
        """What metrics.jsonl tells of an update."""
        return {
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
        }

    def _spike(self, step: Step, loss: float) -> dict[str, Any]:
        """What metrics.jsonl says of a loss far above those before it; documents are measured now."""
        usual = usual_loss(loss, self.state.recent_losses) if self.config.logging.spikes else None
        if usual is None:
            return {}
        numbers = step.documents.tolist()
        documents = highest_losses(self.policy, self.train_documents, numbers=numbers, devices=self.devices)
        return {"spike": {"usual_loss": usual, "documents": documents}}

    def _is_evaluated(self, step: int) -> bool:
        if self.state.evaluated is not None:
            return self.state.evaluated >= step
        is_there = any(line["step"] == step and "train_loss" in line for line in self.metrics.each_line())
        return bool(self.ranks.highest(int(is_there)))

    def _evaluate(self, step: int, view: ProgressView, stop: StopRequest) -> bool:
        """Whether the evaluation went through; one that a signal cuts short leaves no trace."""
        line: dict[str, Any] = {"step": step}
        try:
            with self.ranks.doing(f"step {step}, evaluation"), view.during("evaluation"):
                line |= self.examination.examine(
                    step,
                    is_leaving=lambda: self._agree_on_stop(stop) is not None,
                    is_asked=lambda: stop.signal is not None,
                )
        except CutShort:
            return False
        self._record(line)
        self.state = with_evaluation(self.state, line, by=self.config.evaluation.best_by)
        view.evaluated(line)
        for text in in_words(line):
            view.note(text)
        return True

    def _save(self, step: int, view: ProgressView) -> None:
        state = replace(self.state, scaler=self.scaler.state_dict())
        with self.ranks.doing(f"step {step}, saving"), view.during("save"):
            self.metrics.sync()
            self.mirrors.flush()
            self.checkpoints.save(state, policy=self.policy, optimizer=self.optimizer)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
