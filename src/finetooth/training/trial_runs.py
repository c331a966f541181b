"""Short runs of the real `finetooth train`, in processes of their own: one killed and resumed, one shared.

All of them train the same few documents with the settings of a config; they write into one temporary folder.
"""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from finetooth.base.errors import FinetoothError, problem
from finetooth.config.describe import describe_config
from finetooth.config.schema import DataConfig, SFTConfig
from finetooth.data.records import DocumentSource

# What metrics.jsonl holds that is of the machine, not of the training.
_OF_THE_MACHINE = ("seconds", "time", "peak_memory_mb")
_POLL_SECONDS = 0.002
_DOCUMENTS = "documents.jsonl"


@dataclass(frozen=True, slots=True)
class TrialRun:
    """What a run left behind.

    metrics: the lines of metrics.jsonl, without what is of the machine
    sha256:  over the files of the policy
    """

    folder: Path
    metrics: tuple[dict[str, Any], ...]
    sha256: str

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The lines of updates, evaluations left out."""
        return [line for line in self.metrics if "grad_norm" in line]


@dataclass(frozen=True, slots=True)
class Trial:
    """A config and documents to train it on, written into a folder.

    num_steps, every: how long a run is, and the steps between its checkpoints
    """

    folder: Path
    num_steps: int
    every: int

    def run(self, name: str, *options: str) -> TrialRun:
        """Trains from the first step to the last. Raises FinetoothError where the run fails."""
        with self._started(name, *options) as process:
            self._await(process, name)
        return self._read(name)

    def run_killed(self, name: str) -> tuple[TrialRun, int] | None:
        """The same run, killed (SIGKILL) once it has a checkpoint, then resumed; and after which step.

        None where it ended before it could be killed.
        """
        checkpoints = self.folder / name / "checkpoints"
        with self._started(name) as process:
            while process.poll() is None and not any(checkpoints.glob("step-*")):
                time.sleep(_POLL_SECONDS)
            was_running = process.poll() is None
            process.kill()
            process.wait()
        if not was_running and process.returncode != 0:
            self._fail(process.returncode, name)
        newest = max(int(entry.name.removeprefix("step-")) for entry in checkpoints.glob("step-*"))
        if newest >= self.num_steps or (self.folder / name / "final").exists():
            return None
        return self.run(name, "--resume"), newest

    def _read(self, name: str) -> TrialRun:
        folder = self.folder / name
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
        metrics = tuple(
            {key: value for key, value in line.items() if key not in _OF_THE_MACHINE} for line in lines
        )
        digest = hashlib.sha256()
        for file in sorted((folder / "final").glob("*.safetensors")):
            digest.update(file.name.encode() + file.read_bytes())
        return TrialRun(folder, metrics, digest.hexdigest())

    @contextlib.contextmanager
    def _started(self, name: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
        settings = (str(self.folder / "run.yaml"), f"output_dir={self.folder / name}")
        command = [sys.executable, "-m", "finetooth", "train", *settings, *options]
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            try:
                yield process
            finally:
                process.kill()
                process.wait()

    def _await(self, process: subprocess.Popen[bytes], name: str) -> None:
        if code := process.wait():
            self._fail(code, name)

    def _fail(self, code: int, name: str) -> None:
        lines = (self.folder / f"{name}.log").read_text("utf-8", errors="replace").split("\n")
        told = next((line for line in reversed(lines) if line.strip()), "it said nothing")
        remedy = "see what finetooth train says with these settings"
        raise FinetoothError(problem("trial run", f"exit code {code}: {told.strip()}", remedy))


def write_trial(
    folder: Path,
    config: SFTConfig,
    documents: DocumentSource,
    *,
    template_name: str,
    num_steps: int,
) -> Trial:
    """Writes documents and settings of trial runs.

    The documents are given as tokens, with each target's loss weight 1. All that decides how a step is
    computed is the config's; steps have half of the documents, and nothing is evaluated but losses.
    """
    every = max(2, num_steps // 4)
    _write_tokens(folder / _DOCUMENTS, documents)
    training = replace(
        config.training,
        max_steps=num_steps,
        global_batch_size=max(1, len(documents.lengths) // 2),
        global_batch_tokens=None,
        warmup_steps=config.training.warmup_steps if config.training.warmup_steps < 1 else 0,
    )
    trial = replace(
        config,
        data=_data_of_trial(config.data, folder, template_name),
        training=training,
        evaluation=replace(config.evaluation, every=0, exact_match=None, best_by="dev_loss", patience=None),
        checkpoints=replace(config.checkpoints, every=every, keep=1, final="last"),
        logging=replace(config.logging, every=1, tensorboard=False, wandb=None),
        output_dir=str(folder / "run"),
        origins={},
    )
    (folder / "run.yaml").write_text(describe_config(trial), encoding="utf-8")
    return Trial(folder, num_steps, every)


def _write_tokens(path: Path, documents: DocumentSource) -> None:
    with path.open("w", encoding="utf-8") as file:
        for number in range(len(documents.lengths)):
            document = documents.document(number)
            mask = (document.loss_weights > 0).astype(int).tolist()
            file.write(json.dumps({"input_ids": document.token_ids.tolist(), "loss_mask": mask}) + "\n")


def _data_of_trial(data: DataConfig, folder: Path, template_name: str) -> DataConfig:
    """The settings that read these documents as they are, and keep every one."""
    return replace(
        data,
        train=str(folder / _DOCUMENTS),
        dev=None,
        format="tokens",
        fields=None,
        template="auto" if template_name == "own" else template_name,
        train_end_token=True,
        on_bad_record="error",
        on_long_document="error",
        on_duplicate="keep",
        on_near_duplicate="keep",
        group_by="prompt",
        max_records=None,
        cache_dir=str(folder / "cache"),
    )


def parameter_difference(one: TrialRun, other: TrialRun) -> float:
    """The largest ‖a − b‖/‖b‖ over the policies' tensors; 0 where all bits are the same."""
    if one.sha256 == other.sha256:
        return 0.0
    ours, theirs = (_tensors(run.folder / "final") for run in (one, other))
    if ours.keys() != theirs.keys():
        return float("inf")
    return max(
        float((ours[name] - theirs[name]).norm() / theirs[name].norm().clamp(min=1e-30)) for name in theirs
    )


def metric_difference(
    ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]], *, names: Sequence[str]
) -> float:
    """The largest |a − b|/|b| of these figures, line by line; infinite where other steps stand there."""
    if [line["step"] for line in ours] != [line["step"] for line in theirs]:
        return float("inf")
    pairs = [(one[name], other[name]) for one, other in zip(ours, theirs, strict=True) for name in names]
    return max(abs(one - other) / max(abs(other), 1e-30) for one, other in pairs)


def free_memory() -> int | None:
    """Bytes of memory that are free on this machine, where the system tells."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def _tensors(folder: Path) -> dict[str, Any]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
