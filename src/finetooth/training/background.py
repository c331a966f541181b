"""One piece of work at a time in a second thread; what fails there is raised where one asks for it."""

import threading
from collections.abc import Callable

from finetooth.base.distributed import ALONE, Ranks

_DONE, _RUNNING, _FAILED = range(3)


class Background:
    """Runs work beside the training.

    ranks: those that do the same work at the same time; all of them must call each method.
    """

    def __init__(self, ranks: Ranks = ALONE):
        self._ranks = ranks
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def start(self, work: Callable[[], object]) -> None:
        """Starts a piece of work when the one before it has ended; raises what that one raised."""
        self.wait()

        def run() -> None:
            try:
                work()
            except BaseException as failure:  # noqa: BLE001 - raised by the thread that asks
                self._failure = failure

        # A daemon: a second signal, or another rank's failure, must end the process at once.
        self._thread = threading.Thread(target=run, name="saving", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises what the work raised, on all ranks at once; costs nothing where no work was started."""
        if self._thread is None:
            return
        state = _RUNNING if self._thread.is_alive() else _FAILED if self._failure is not None else _DONE
        if self._ranks.highest(state) != _RUNNING:
            self.wait()

    def wait(self, seconds: float | None = None) -> None:
        """Returns when no work is left, or so many seconds have passed; raises what the work raised."""
        if self._thread is not None:
            self._thread.join(seconds)
            self._thread = self._thread if self._thread.is_alive() else None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
