"""What a person sees while a run goes on: two live lines on a terminal, about twenty plain lines elsewhere.

step 1,200/20,000  epoch 0.36  1:12:41 left  peak 71.2 GB  ━━━━───────────────────────────
loss 1.2345 (now 1.1021)  dev 1.3012  12,345 tokens/s  lr 1.95e-05  grad 0.82
"""

import contextlib
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping
from statistics import fmean
from types import TracebackType
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from finetooth.base.terminal import print_line
from finetooth.training.time_left import TimeLeft, Work

PLAIN_LINES = 20
# Over so many steps the loss and the speed are averaged.
_AVERAGED_STEPS = 20
_REFRESH_SECONDS = 0.2
_SHORTEST_BAR = 8
_SHORTEST_SECONDS = 1e-4  # to which they are rounded
_WORDS: dict[Work, str] = {"step": "training", "evaluation": "evaluating", "save": "saving"}


class ProgressView:
    """Shows a run as it goes on.

    console: where to; a terminal gets live lines, unless it is a plain one (TERM=dumb), NO_COLOR is set, or
             CI, where every change would stay in the log. What was printed stays, and so does the last state.
    left:    is told how long steps, evaluations and saves take; default: of a run that does both at its end
    """

    def __init__(self, console: Console, *, first_step: int, num_steps: int, left: TimeLeft | None = None):
        self._console = console
        self._num_steps = num_steps
        self._first_step = first_step
        self._plain_every = max(1, (num_steps - first_step + 1) // PLAIN_LINES)
        self._left = left or TimeLeft(num_steps, evaluate_every=0, save_every=0)
        self._lines = deque[Mapping[str, Any]](maxlen=_AVERAGED_STEPS)
        self._dev_loss: float | None = None
        self._work: Work = "step"
        self._refreshed = 0.0
        is_live = console.is_interactive and not console.no_color and not os.environ.get("CI")
        self._live = Live(self, console=console, auto_refresh=False) if is_live else None

    def __enter__(self) -> "ProgressView":
        if self._live is not None:
            self._live.start(refresh=True)
            self._console.show_cursor()  # stays visible, whatever ends the process
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ):
        if self._live is not None:
            self._live.stop()

    def step(self, line: Mapping[str, Any]) -> None:
        """A step was done. line: as metrics.jsonl may hold it."""
        step, seconds = line["step"], max(line["seconds"], _SHORTEST_SECONDS)
        self._lines.append(line)
        self._left.took("step", seconds)
        is_due = step == self._first_step or step == self._num_steps or step % self._plain_every == 0
        if self._live is not None:
            self._refresh()
        elif is_due:
            facts = f"loss {line['loss']:.4f}  lr {line['learning_rate']:.2e}"
            speed = f"{line['num_tokens'] / seconds:,.0f} tokens/s"
            self.note(f"step {step}/{self._num_steps}  {facts}  {speed}  {self._time_left()}")

    def evaluated(self, line: Mapping[str, Any]) -> None:
        """An evaluation was done. line: as metrics.jsonl holds it."""
        self._dev_loss = line.get("dev_loss")

    @contextlib.contextmanager
    def during(self, work: Work) -> Iterator[None]:
        """Shows that something else than a step is being done, and notes how long it takes."""
        started = time.perf_counter()
        self._work = work
        self._refresh(at_once=True)
        try:
            yield
        finally:
            self._work = "step"
        self._left.took(work, time.perf_counter() - started)
        self._refresh(at_once=True)

    def note(self, text: str) -> None:
        """Something to be read, above the live lines."""
        print_line(self._console, text)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width - 1
        first = _joined(self._facts_of_run(), width)
        room = width - len(first) - 2
        if room >= _SHORTEST_BAR:
            done, rest = ("#", "-") if options.ascii_only else ("━", "─")
            num_done = room * self._done // self._num_steps
            bar = (done * num_done, "green"), (rest * (room - num_done), "dim")
            yield Text.assemble(first, "  ", *bar, no_wrap=True, overflow="crop")
        else:
            yield Text(first, no_wrap=True, overflow="crop")
        yield Text(_joined(self._facts_of_training(), width), no_wrap=True, overflow="crop")

    @property
    def _done(self) -> int:
        return self._lines[-1]["step"] if self._lines else self._first_step - 1

    def _facts_of_run(self) -> list[str]:
        facts = [f"step {self._done:,}/{self._num_steps:,}"]
        if not self._lines:
            return [*facts, "before the first step" if self._work == "step" else _WORDS[self._work]]
        last = self._lines[-1]
        now = self._time_left() if self._work == "step" else _WORDS[self._work]
        return [*facts, f"epoch {last['epoch']:.2f}", now, f"peak {_memory(last['peak_memory_mb'])}"]

    def _facts_of_training(self) -> list[str]:
        if not self._lines:
            return []
        last = self._lines[-1]
        loss = fmean(line["loss"] for line in self._lines)
        seconds = sum(max(line["seconds"], _SHORTEST_SECONDS) for line in self._lines)
        speed = sum(line["num_tokens"] for line in self._lines) / seconds
        return [
            f"loss {_loss(loss)} (now {_loss(last['loss'])})",
            *([] if self._dev_loss is None else [f"dev {_loss(self._dev_loss)}"]),
            f"{speed:,.0f} tokens/s",
            f"lr {last['learning_rate']:.2e}",
            f"grad {last['grad_norm']:.3g}",
        ]

    def _time_left(self) -> str:
        seconds = self._left.after(self._done)
        assert seconds is not None, "a step was done"
        return f"{_clock(seconds)} left"

    def _refresh(self, *, at_once: bool = False) -> None:
        """Draws anew, at most a few times a second."""
        now = time.monotonic()
        if self._live is not None and (at_once or now >= self._refreshed + _REFRESH_SECONDS):
            self._refreshed = now
            self._live.refresh()


def _joined(facts: list[str], width: int) -> str:
    """As many of the facts as fit, the first ones first."""
    while len(facts) > 1 and len("  ".join(facts)) > width:
        facts = facts[:-1]
    return "  ".join(facts)


def _loss(value: float) -> str:
    return f"{value:.4f}" if value < 1000 else f"{value:.4g}"


def _memory(megabytes: float) -> str:
    return f"{megabytes / 1000:.1f} GB" if megabytes >= 1000 else f"{megabytes:.0f} MB"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
