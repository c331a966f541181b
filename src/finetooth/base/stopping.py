"""StopRequest: SIGTERM, SIGUSR1 and SIGINT end a run at once, or, while it trains, when its work is saved."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from finetooth.base.errors import Stopped, problem

WATCHED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# torchrun passes on a signal that its processes may have got from the terminal already: that is one request.
ONE_REQUEST_SECONDS = 1.0

Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None


class CutShort(Exception):  # noqa: N818 - what was asked for, not a failure
    """An evaluation was left before its end, because the run was asked to stop."""


class StopRequest:
    """The signal that asked a run to stop, if one did.

    Before `hold` a signal ends the run where it stands, by raising Stopped. From then on it is only noted,
    and the run ends when the work at hand is saved. A second signal ends the process at once.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._is_held = False
        self._deadline: float | None = None
        self._give_up: Callable[[], object] | None = None
        self._timer: threading.Timer | None = None

    @property
    def exit_code(self) -> int:
        """130 after SIGINT, 75 otherwise."""
        return 130 if self.signal is signal.SIGINT else 75

    def hold(self, *, deadline: float | None = None, give_up: Callable[[], object] | None = None) -> None:
        """From here on a signal is noted instead of ending the run at once.

        give_up: called, in another thread, so many seconds after the signal; it should end the process.
        """
        self._is_held, self._deadline, self._give_up = True, deadline, give_up
        if self.signal is not None:  # raised where Python drops exceptions, as in a destructor
            raise self._stopped()

    def settle(self) -> None:
        """From here on nothing is left that has to be saved in time: no deadline holds."""
        self._deadline = None
        if self._timer is not None:
            self._timer.cancel()

    @contextlib.contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Within it, signals are requests to stop."""
        if threading.current_thread() is not threading.main_thread():
            yield self  # Python lets only the main thread listen
            return
        before = {number: signal.getsignal(number) for number in WATCHED}
        first_at = 0.0

        def note(number: int, frame: FrameType | None) -> None:
            nonlocal first_at
            if self.signal is not None:
                if time.monotonic() < first_at + ONE_REQUEST_SECONDS:
                    return
                _end_at_once(number, before)
                return
            self.signal, first_at = signal.Signals(number), time.monotonic()
            if "TORCHELASTIC_RUN_ID" not in os.environ:
                _restore(before)
            if not self._is_held:
                raise self._stopped()
            if self._deadline is not None and self._give_up is not None:
                self._timer = threading.Timer(self._deadline, self._give_up)
                self._timer.daemon = True
                self._timer.start()

        for number in WATCHED:
            signal.signal(number, note)
        try:
            yield self
        finally:
            if self._timer is not None:
                self._timer.cancel()
            _restore(before)

    def _stopped(self) -> Stopped:
        assert self.signal is not None, "a signal was noted"
        fact = f"stopped by {self.signal.name} before the first step"
        return Stopped(problem("run", fact, "start it with the same command"), exit_code=self.exit_code)


def _restore(handlers: dict[signal.Signals, Handler]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _end_at_once(number: int, handlers: dict[signal.Signals, Handler]) -> None:
    _restore(handlers)
    os.kill(os.getpid(), number)
