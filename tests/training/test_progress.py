"""What a person sees of a run: two calm lines on a terminal, about twenty plain ones elsewhere."""

import io
import itertools
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.documents import random_documents, small_policy
from tests.screen import Screen
from tests.training.test_trainer import make_config

from finetooth.base.distributed import Ranks
from finetooth.training import progress
from finetooth.training.progress import ProgressView
from finetooth.training.time_left import TimeLeft
from finetooth.training.trainer import SFTTrainer

PLAIN: list[dict[str, str]] = [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {"CI": "true"}]


@pytest.fixture(autouse=True)
def no_ci(monkeypatch: pytest.MonkeyPatch):
    """A clock that runs on by a second whenever it is read, and an environment that speaks for a terminal."""
    monkeypatch.delenv("CI", raising=False)
    clock = itertools.count()
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))


def terminal(*, width: int = 80, **environment: str) -> Console:
    return Console(
        file=io.StringIO(),
        force_terminal=True,
        force_interactive=None if environment else True,
        width=width,
        height=24,
        legacy_windows=False,
        _environ={"TERM": "xterm", **environment},
    )


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def line_of(step: int, **others: Any) -> dict[str, Any]:
    line = {"step": step, "epoch": step / 100, "loss": 2.0 + step, "learning_rate": 1.5e-5}
    rest = {"grad_norm": 0.8231, "num_tokens": 1000, "seconds": 0.5, "peak_memory_mb": 71_200.0}
    return {**line, **rest, **others}


def view_of(console: Console, *, num_steps: int = 2000, first_step: int = 1) -> ProgressView:
    left = TimeLeft(num_steps, evaluate_every=0, save_every=0)
    return ProgressView(console, first_step=first_step, num_steps=num_steps, left=left)


def test_two_lines_show_where_the_run_stands_and_the_last_state_stays():
    console = terminal()
    with view_of(console) as view:
        for step in (1, 2, 3):
            view.step(line_of(step))
        view.evaluated({"dev_loss": 3.25})
        view.note("step 3  dev_loss 3.25")
        view.step(line_of(4))
    screen = Screen(written(console))
    assert [line.rstrip() for line in screen.lines] == [
        "step 3  dev_loss 3.25",
        "step 4/2,000  epoch 0.04  16:38 left  peak 71.2 GB  " + "─" * 27,
        "loss 4.5000 (now 6.0000)  dev 3.2500  2,000 tokens/s  lr 1.50e-05  grad 0.823",
        "",
    ]
    assert not screen.hidden


def test_the_bar_grows_with_the_run():
    console = terminal()
    with view_of(console, num_steps=4) as view:
        for step in (1, 2):
            view.step(line_of(step))
    bar = Screen(written(console)).lines[0].rpartition("  ")[2]
    assert set(bar) == {"━", "─"}
    assert abs(bar.count("━") - bar.count("─")) <= 1


@pytest.mark.parametrize("width", [30, 80, 200])
def test_the_largest_numbers_fit(width: int):
    console = terminal(width=width)
    numbers = {"loss": 12345.678, "grad_norm": 1.234e-17, "learning_rate": 1e-100, "num_tokens": 10**9}
    with view_of(console, num_steps=10**7) as view:
        view.evaluated({"dev_loss": 1e12})
        view.step(line_of(9_999_998, epoch=1234.5, seconds=3599.0, peak_memory_mb=1e6, **numbers))
    screen = Screen(written(console), width=width)
    assert len(screen.lines) == 3
    assert screen.lines[0].startswith("step 9,999,998/10,000,000")
    assert screen.lines[1].startswith("loss 1.235e+04")


def test_what_is_done_between_steps_is_shown():
    console = terminal()
    with view_of(console) as view:
        view.step(line_of(1))
        with view.during("evaluation"):
            assert "evaluating" in Screen(written(console)).lines[0]
        with view.during("save"):
            assert "saving" in Screen(written(console)).lines[0]
        assert " left " in Screen(written(console)).lines[0]


def test_before_the_first_step_it_says_so():
    console = terminal()
    with view_of(console):
        assert Screen(written(console)).lines[0].startswith("step 0/2,000  before the first step  ──")
        assert not Screen(written(console)).hidden, "a process that is killed leaves the cursor as it is"


def test_an_error_leaves_the_last_state_and_what_stands_above():
    console = terminal()
    view = view_of(console).__enter__()
    view.note("something to be read")
    view.step(line_of(1))
    view.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    lines = Screen(written(console)).lines
    assert lines[0].rstrip() == "something to be read"
    assert lines[1].startswith("step 1/2,000")
    assert lines[2].startswith("loss 3.0000")


def test_it_is_drawn_a_few_times_a_second_and_no_more(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress.time, "monotonic", lambda: 1000.0)
    console = terminal()
    with view_of(console) as view:
        for step in range(1, 100):
            view.step(line_of(step))
        assert written(console).count("loss") == 1
    assert Screen(written(console)).lines[0].startswith("step 99/2,000"), "the end is always drawn"


@pytest.mark.parametrize("environment", PLAIN, ids=str)
def test_elsewhere_about_twenty_plain_lines_are_written(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    console = terminal(**environment)
    with view_of(console, num_steps=200) as view:
        for step in range(1, 201):
            view.step(line_of(step))
    lines = written(console).splitlines()
    assert lines[0] == "step 1/200  loss 3.0000  lr 1.50e-05  2,000 tokens/s  1:40 left"
    assert [int(line.split("/")[0].removeprefix("step ")) for line in lines] == [1, *range(10, 201, 10)]


def test_a_terminal_would_get_live_lines():
    """Negative control of the plain ones: the same console without any of these variables."""
    console = terminal()
    with view_of(console, num_steps=200) as view:
        for step in range(1, 201):
            view.step(line_of(step))
    assert len(Screen(written(console)).lines) == 3


def test_evaluations_and_saves_count_in_the_time_left():
    left = TimeLeft(100, evaluate_every=10, save_every=50)
    assert left.after(0) is None
    left.took("evaluation", 7.0)
    left.took("step", 30.0)
    assert left.after(1) == 99 * 30.0 + 10 * 7.0, "a first step counts as long as there is no other"
    left.took("step", 2.0)
    left.took("save", 1.0)
    assert left.after(50) == 50 * 2.0 + 5 * 7.0 + 1 * 1.0
    assert left.after(95) == 5 * 2.0 + 1 * 7.0 + 1 * 1.0
    assert left.after(100) == 0.0
    assert TimeLeft(100, evaluate_every=0, save_every=0)._num_ahead(3, 0) == 1


def test_a_run_shows_itself_and_only_its_first_rank_does(tmp_path: Path):
    console = terminal()
    config = make_config(tmp_path, every=4)
    dev = random_documents(5, seed=1)
    SFTTrainer(config, policy=small_policy(), train=random_documents(14), dev=dev, console=console).train()
    lines = [line.rstrip() for line in Screen(written(console)).lines]
    assert [line.split()[:2] for line in lines[:4]] == [["step", str(step)] for step in (0, 4, 8, 10)]
    assert lines[4].startswith("step 10/10  epoch 2.00  0:00 left  peak ")
    assert " dev " in lines[5]
    other = SFTTrainer(config, policy=small_policy(), train=random_documents(14), console=terminal())
    assert not other.console.quiet
    elsewhere = {"config": config, "policy": small_policy(), "train": random_documents(14)}
    assert SFTTrainer(**elsewhere, ranks=Ranks(1, 1), console=terminal()).console.quiet
