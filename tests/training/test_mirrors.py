"""Mirrors show what metrics.jsonl tells: each figure once, also behind a kill; none of them can end a run."""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.documents import random_documents, small_policy
from tests.small_run import write_run
from tests.training.test_trainer import make_config
from transformers import AutoModelForCausalLM

from finetooth.base.errors import ConfigError, FinetoothError
from finetooth.config.load import load_config
from finetooth.config.schema import LoggingConfig, SFTConfig
from finetooth.model.policy import PolicyModel
from finetooth.train import train as run_verb
from finetooth.training.checkpoint import Checkpoint, CheckpointManager, read_state
from finetooth.training.mirrors import Mirrors, _figures, require_mirrors
from finetooth.training.trainer import SFTTrainer, TrainResult
from finetooth.training.updates import Updates

DOCUMENTS, DEV = random_documents(14), random_documents(5, seed=1)
Shown = dict[tuple[str, int], list[float]]


class FakeBoard:
    """TensorBoard: what it shows of a folder. What a writer holds back is lost with its process."""

    def __init__(self) -> None:
        self.shown: list[tuple[str, int, float]] = []
        board = self

        class SummaryWriter:
            def __init__(self, folder: str, *, purge_step: int):
                Path(folder).mkdir(exist_ok=True)
                Path(folder, "events.out.tfevents.1").touch()
                board.shown = [entry for entry in board.shown if entry[1] < purge_step]
                self.held_back: list[tuple[str, int, float]] = []

            def add_scalar(self, name: str, value: float, step: int, walltime: float | None = None):
                self.held_back.append((name, step, value))

            def flush(self) -> None:
                board.shown += self.held_back
                self.held_back = []

            close = flush

        self.module = ModuleType("torch.utils.tensorboard")
        self.module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]


class FakeWandb:
    """wandb: the rows of its runs, by id."""

    def __init__(self) -> None:
        self.runs: dict[str, list[dict[str, float]]] = {}
        self.exit_codes: list[int] = []
        self.asked: list[dict[str, Any]] = []
        fake = self

        class Run:
            def __init__(self, id: str):
                self.rows = fake.runs.setdefault(id, [])

            def define_metric(self, name: str, *, step_metric: str) -> None:
                assert (name, step_metric) == ("*", "step")

            def log(self, row: dict[str, float]) -> None:
                self.rows.append(row)

            def finish(self, *, exit_code: int) -> None:
                fake.exit_codes.append(exit_code)

        def init(**options: Any) -> Run:
            fake.asked.append(options)
            return Run(options["id"])

        self.is_known = True
        self.module = ModuleType("wandb")
        self.module.login = lambda *, verify: fake.is_known and not verify  # type: ignore[attr-defined]
        self.module.UsageError = ValueError  # type: ignore[attr-defined]
        self.module.init = init  # type: ignore[attr-defined]
        self.module.Settings = lambda **options: options  # type: ignore[attr-defined]


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> FakeBoard:
    fake = FakeBoard()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake.module)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    return fake


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake.module)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    return fake


def mirrored(folder: Path, **training: Any) -> SFTConfig:
    """Ten steps, evaluated at every other one and saved at every fourth."""
    config = make_config(folder, every=2, **training)
    checkpoints = replace(config.checkpoints, every=4)
    return replace(config, checkpoints=checkpoints, logging=LoggingConfig(tensorboard=True, wandb="mine"))


def train(config: SFTConfig, *, behind: int = 0, accept_changes: bool = False) -> TrainResult:
    folder = CheckpointManager(Path(config.output_dir) / "checkpoints").path_of(behind)
    policy = PolicyModel(AutoModelForCausalLM.from_pretrained(folder)) if behind else small_policy()
    trainer = SFTTrainer(config, policy=policy, train=DOCUMENTS, dev=DEV)
    if behind:
        trainer.take_up(Checkpoint(folder, read_state(folder)), accept_changes=accept_changes)
    return trainer.train()


def killed_at(step: int, config: SFTConfig, **options: Any) -> None:
    """The same, killed while it trains a step: no `with` is left as it would be, and nothing is flushed."""
    real = Updates.train

    def train_or_die(self: Updates, asked: Any) -> Any:
        if asked.number == step:
            raise FinetoothError("killed")
        return real(self, asked)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Updates, "train", train_or_die)
        patch.setattr(Mirrors, "__exit__", lambda *_: None)
        with pytest.raises(FinetoothError, match="killed"):
            train(config, **options)


def in_metrics(result: TrainResult) -> Shown:
    """What is to be shown: each figure of metrics.jsonl, once."""
    return {
        (name, line["step"]): [value] for line in result.history for name, value in _figures(line).items()
    }


def on_board(board: FakeBoard) -> Shown:
    shown: Shown = {}
    for name, step, value in board.shown:
        shown.setdefault((name, step), []).append(value)
    return shown


def at_wandb(rows: list[dict[str, float]]) -> Shown:
    shown: Shown = {}
    for row in rows:
        for name, value in row.items():
            if name != "step":
                shown.setdefault((name, int(row["step"])), []).append(value)
    return shown


def without_durations(shown: Shown) -> Shown:
    """What is the same when a step is done again."""
    varying = ("update/seconds", "update/peak_memory_mb")
    return {key: values for key, values in shown.items() if key[0] not in varying}


def test_figures_are_named_by_where_they_come_from():
    assert _figures({"step": 3, "time": 5.0, "loss": 2, "spike": {"usual_loss": 1.0}}) == {"update/loss": 2.0}
    assert _figures({"step": 3, "train_loss": 1.5, "exact_match": 0}) == {
        "evaluation/train_loss": 1.5,
        "evaluation/exact_match": 0.0,
    }
    assert _figures({"step": 3, "changes": {"training.seed": {"before": 1, "now": 2}}}) == {}


def test_every_figure_is_shown_once(tmp_path: Path, board: FakeBoard, wandb: FakeWandb):
    result = train(mirrored(tmp_path))
    assert on_board(board) == in_metrics(result)
    (rows,) = wandb.runs.values()
    assert at_wandb(rows) == in_metrics(result)
    assert wandb.exit_codes == [0]
    (asked,) = wandb.asked
    assert (asked["project"], asked["name"], asked["resume"]) == ("mine", tmp_path.name, "allow")


@pytest.mark.parametrize("died_at", [1, 2, 3, 5, 7, 9, 10])
def test_behind_a_kill_nothing_is_missing_twice_or_otherwise(
    tmp_path: Path, board: FakeBoard, wandb: FakeWandb, died_at: int
):
    config = mirrored(tmp_path)
    killed_at(died_at, config)
    saved = sorted((tmp_path / "checkpoints").glob("step-*"))
    result = train(config, behind=int(saved[-1].name.removeprefix("step-")) if saved else 0)
    assert on_board(board) == in_metrics(result)
    rows = list(wandb.runs.values())[-1]
    assert without_durations(at_wandb(rows)) == without_durations(in_metrics(result))


def test_killed_twice_it_still_shows_each_once(tmp_path: Path, board: FakeBoard, wandb: FakeWandb):
    """Killed the second time before it came as far as the first time."""
    config = mirrored(tmp_path)
    killed_at(10, config)
    saved = {path.name for path in (tmp_path / "checkpoints").glob("step-*")}
    assert "step-000008" in saved
    behind = min(int(name.removeprefix("step-")) for name in saved)
    killed_at(behind + 2, config, behind=behind)
    result = train(config, behind=behind)
    assert on_board(board) == in_metrics(result)
    (rows,) = wandb.runs.values()
    assert without_durations(at_wandb(rows)) == without_durations(in_metrics(result))


def test_a_run_that_goes_on_with_changes_is_a_new_one_at_wandb(
    tmp_path: Path, board: FakeBoard, wandb: FakeWandb
):
    """What wandb has been shown cannot be taken back, and would contradict what comes now."""
    killed_at(7, mirrored(tmp_path))
    changed = mirrored(tmp_path, learning_rate=1e-4, min_learning_rate=1e-4)
    result = train(changed, behind=4, accept_changes=True)
    assert on_board(board) == in_metrics(result)
    first, second = wandb.runs.values()
    assert at_wandb(second) == in_metrics(result)
    assert at_wandb(first)[("update/learning_rate", 6)] != at_wandb(second)[("update/learning_rate", 6)]


def test_a_mirror_that_is_asked_for_later_shows_what_was_before(
    tmp_path: Path, board: FakeBoard, wandb: FakeWandb
):
    config = mirrored(tmp_path)
    killed_at(7, replace(config, logging=LoggingConfig()))
    assert (board.shown, wandb.runs) == ([], {})
    result = train(config, behind=4)
    assert on_board(board) == in_metrics(result)
    (rows,) = wandb.runs.values()
    assert at_wandb(rows) == in_metrics(result)


class Breaking:
    """A mirror that breaks at its third line."""

    def __init__(self) -> None:
        self.num_lines = 0

    def write(self, line: Any) -> None:
        self.num_lines += 1
        if self.num_lines == 3:
            raise OSError("no space left")

    def flush(self) -> None:
        assert self.num_lines < 3, "is asked no more"

    def close(self, *, has_failed: bool) -> None:
        raise AssertionError("is asked no more")


class Sound(Breaking):
    def write(self, line: Any) -> None:
        self.num_lines += 1

    def flush(self) -> None:
        pass

    def close(self, *, has_failed: bool) -> None:
        assert has_failed


def test_a_mirror_that_fails_is_told_once_and_left_out():
    told: list[str] = []
    sound = Sound()

    def opening() -> Breaking:
        raise ValueError("no project")

    openers = {"logging.wandb": Breaking, "logging.other": opening, "logging.tensorboard": lambda: sound}
    mirrors = Mirrors(openers, notify=told.append)
    for step in range(6):
        mirrors.write({"step": step})
        mirrors.flush()
    mirrors.__exit__(ZeroDivisionError, None, None)
    remedy = "the run goes on without it; metrics.jsonl has everything"
    assert told == [
        f"logging.other: ValueError: no project; {remedy}",
        f"logging.wandb: OSError: no space left; {remedy}",
    ]
    assert sound.num_lines == 6


def test_a_run_outlives_its_mirrors(tmp_path: Path, board: FakeBoard, monkeypatch: pytest.MonkeyPatch):
    def failing(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(board.module.SummaryWriter, "add_scalar", failing)
    config = replace(mirrored(tmp_path), logging=LoggingConfig(tensorboard=True))
    assert train(config).last_step == 10


def test_a_package_that_is_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError) as caught:
        require_mirrors(LoggingConfig(tensorboard=True, wandb="mine"))
    assert caught.value.problems == [
        "logging.tensorboard: it needs the package tensorboard; pip install 'finetooth[tensorboard]'",
        "logging.wandb: it needs the package wandb; pip install 'finetooth[wandb]'",
    ]
    require_mirrors(LoggingConfig())
    with pytest.raises(ConfigError, match=r"^logging\.tensorboard: "):
        SFTTrainer(mirrored(tmp_path), policy=small_policy(), train=DOCUMENTS)


def test_wandb_without_a_key_is_told(tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    require_mirrors(LoggingConfig(wandb="mine"))
    wandb.is_known = False
    with pytest.raises(ConfigError) as caught:
        require_mirrors(LoggingConfig(wandb="mine"))
    assert str(caught.value) == (
        "logging.wandb: wandb has no key of yours; "
        "run wandb login, set WANDB_API_KEY, or set WANDB_MODE=offline"
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    require_mirrors(LoggingConfig(wandb="mine"))
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(ConfigError):
        require_mirrors(LoggingConfig(wandb="mine"))


def test_it_is_told_before_any_record_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    write_run(tmp_path, logging={"tensorboard": True})
    (tmp_path / "train.jsonl").write_text("no record\n")
    with pytest.raises(ConfigError, match=r"^logging\.tensorboard: "):
        run_verb(load_config("run.yaml"))
    assert not (tmp_path / "run").exists()


def test_tensorboard_reads_what_was_written(tmp_path: Path):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="tensorboard is not installed (finetooth[tensorboard])",
    )
    config = replace(mirrored(tmp_path), logging=LoggingConfig(tensorboard=True))
    killed_at(7, config)
    result = train(config, behind=4)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    shown: Shown = {}
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            shown.setdefault((name, event.step), []).append(event.value)
    expected = {key: [pytest.approx(value) for value in values] for key, values in in_metrics(result).items()}
    assert shown == expected


def test_wandb_takes_what_is_given_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb", reason="wandb is not installed (finetooth[wandb])")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    config = replace(mirrored(tmp_path), logging=LoggingConfig(wandb="mine"))
    killed_at(7, config)
    assert train(config, behind=4).last_step == 10
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 2
