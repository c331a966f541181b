"""What a person sees while a run goes on: a live line on a terminal, plain lines elsewhere."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from finetooth.base.terminal import print_line

PLAIN_LINES = 20


class ProgressView:
    """Shows steps as they finish: loss, learning rate, tokens per second, time left.

    console: where to; on anything but a terminal about 20 plain lines are written per run.
    """

    def __init__(self, console: Console, *, first_step: int, num_steps: int):
        self._console = console
        self._num_steps = num_steps
        self._first_step = first_step
        self._plain_every = max(1, (num_steps - first_step + 1) // PLAIN_LINES)
        self._training_seconds = 0.0
        self._bar = Progress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(bar_width=None),
            TextColumn("{task.description}"),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=num_steps, completed=first_step - 1)

    def __enter__(self) -> "ProgressView":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ):
        self._bar.stop()

    def step(self, step: int, *, loss: float, learning_rate: float, num_tokens: int, seconds: float) -> None:
        """A step was done; the time left counts steps alone, not evaluations."""
        self._training_seconds += seconds
        tokens_per_second = num_tokens / seconds
        facts = f"loss {loss:.4f}  lr {learning_rate:.2e}  {tokens_per_second:,.0f} tokens/s"
        self._bar.update(self._task, completed=step, description=facts)
        is_due = step == self._first_step or step == self._num_steps or step % self._plain_every == 0
        if not self._console.is_terminal and is_due:
            left = self._training_seconds / (step - self._first_step + 1) * (self._num_steps - step)
            self.note(f"step {step}/{self._num_steps}  {facts}  {_clock(left)} left")

    def note(self, text: str) -> None:
        """Something to be read, above the live line."""
        print_line(self._bar.console, text)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
