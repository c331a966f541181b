"""Guards of the loop: which documents made a step non-finite, and a request to stop from outside."""

import contextlib
import math
import signal
import threading
from collections.abc import Iterator, Sequence
from types import FrameType

import torch

from finetooth.base.devices import DeviceManager
from finetooth.batching.collate import collate
from finetooth.data.records import DocumentSource
from finetooth.model.policy import PolicyModel

SHOWN_DOCUMENTS = 10


@torch.no_grad()
def blame_documents(
    policy: PolicyModel, documents: DocumentSource, *, numbers: Sequence[int], devices: DeviceManager
) -> str:
    """A sentence that names the documents whose own loss is not finite.

    Where each is finite alone it names all of them, and says that they are not to blame.

    numbers: the documents of the step, each of which is computed alone once more.
    """
    culprits: list[int] = []
    for number in numbers:
        with devices.autocast():
            loss = float(policy(collate([(number,)], documents).to(devices.device)))
        if not math.isfinite(loss):
            culprits.append(number)
    shown = [str(documents.document(number).origin) for number in (culprits or numbers)[:SHOWN_DOCUMENTS]]
    more = len(culprits or numbers) - len(shown)
    listed = ", ".join(shown) + (f" and {more} more" if more else "")
    if culprits:
        return f"documents whose own loss is not finite: {listed}"
    return (
        f"documents of this step: {listed}; each is finite alone, "
        "so the learning rate or the model is to blame"
    )


class StopRequest:
    """Notes SIGTERM, SIGUSR1 and SIGINT while a run goes on; a second signal ends the process at once."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    @property
    def exit_code(self) -> int:
        """130 after SIGINT, 75 otherwise."""
        return 130 if self.signal is signal.SIGINT else 75

    @contextlib.contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Within it, signals are noted instead of ending the process."""
        if threading.current_thread() is not threading.main_thread():
            yield self  # Python lets only the main thread listen
            return
        watched = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
        before = {number: signal.getsignal(number) for number in watched}

        def note(number: int, frame: FrameType | None) -> None:
            self.signal = signal.Signals(number)
            for watched_number, handler in before.items():
                signal.signal(watched_number, handler)

        for number in watched:
            signal.signal(number, note)
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
