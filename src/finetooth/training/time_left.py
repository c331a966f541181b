"""How long a run will still take: steps, evaluations and saves, by what each took of late."""

from collections import deque
from statistics import fmean
from typing import Literal

Work = Literal["step", "evaluation", "save"]
_REMEMBERED = 50


class TimeLeft:
    """Counts what is ahead, and remembers how long each kind of work takes.

    num_steps: of the whole run; evaluate_every, save_every: as in the settings, 0 means at the end only

    >>> left = TimeLeft(10, evaluate_every=4, save_every=0)
    >>> left.took("evaluation", 5.0)
    >>> left.took("step", 2.0)
    >>> left.after(3)                            # 7 steps, and evaluations after steps 4, 8 and 10
    29.0
    """

    def __init__(self, num_steps: int, *, evaluate_every: int, save_every: int):
        self._num_steps = num_steps
        self._every: dict[Work, int] = {"step": 1, "evaluation": evaluate_every, "save": save_every}
        self._seconds: dict[Work, deque[float]] = {work: deque(maxlen=_REMEMBERED) for work in self._every}

    def took(self, work: Work, seconds: float) -> None:
        """Notes how long a piece of work has taken."""
        self._seconds[work].append(seconds)

    def after(self, step: int) -> float | None:
        """Seconds from behind a step to the end; None before the first step.

        Work that was never done yet counts as no time, and so does an early end.
        """
        if not self._seconds["step"]:
            return None
        return sum(self._num_ahead(step, every) * self._usual(work) for work, every in self._every.items())

    def _num_ahead(self, step: int, every: int) -> int:
        """How often something is still done: every so many steps, and at the end."""
        if step >= self._num_steps:
            return 0
        return 1 + ((self._num_steps - 1) // every - step // every if every > 0 else 0)

    def _usual(self, work: Work) -> float:
        """The mean without the oldest of several values, as the first of all is slower than others."""
        seconds = list(self._seconds[work])
        return fmean(seconds[1:] or seconds) if seconds else 0.0
