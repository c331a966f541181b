"""Why a record gives no documents."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a record gives no documents, and what to do about it."""

    reason: str
    remedy: str


class RefusedError(Exception):
    """Carries a refusal out of the proof; never leaves the data package."""

    def __init__(self, reason: str, remedy: str):
        super().__init__(reason, remedy)
        self.refusal = Refusal(reason, remedy)
