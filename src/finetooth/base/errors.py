"""The exceptions a user can meet, each with the exit code of the command that raised it.

    FinetoothError             1  failed while running
    ├── ConfigError            2  run.yaml or the command line
    ├── DataError              3  records, templates, stores
    ├── DeviceMemoryError      4  the device's memory does not hold the work
    ├── NonFiniteError         1  a loss or gradient is not a number
    ├── DiskFullError          1  no room for what is to be written
    └── Stopped               75  asked to stop; saved and resumable (130 after SIGINT)
        └── ToldElsewhere      -  another process of the run tells why, with the same exit code

A message is one line per problem, `place: fact; remedy`, with all problems of one kind at once.
"""

from collections.abc import Callable, Iterable
from typing import TypeVar

Value = TypeVar("Value")
Result = TypeVar("Result")

MAX_PROBLEMS_SHOWN = 50


def problem(place: object, fact: str, remedy: str) -> str:
    """Words one problem: where it is, what is the case, what to do.

    >>> problem("run.yaml:5", "training.lerning_rate: unknown key", "did you mean 'learning_rate'?")
    "run.yaml:5: training.lerning_rate: unknown key; did you mean 'learning_rate'?"
    """
    return f"{place}: {fact}; {remedy}"


def all_at_once(call: Callable[[Value], Result], values: Iterable[Value]) -> list[Result]:
    """What a call gives for each value; raises one ConfigError with the problems of all that raise one.

    >>> all_at_once(int, ["1", "2"])
    [1, 2]
    """
    results: list[Result] = []
    problems: list[str] = []
    for value in values:
        try:
            results.append(call(value))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return results


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; torch tells by its own class on CUDA and by a sentence elsewhere."""
    sentences = ("DefaultCPUAllocator: ", "MPS backend out of memory")
    is_torch_class = type(error).__name__ == "OutOfMemoryError"
    return isinstance(error, MemoryError) or is_torch_class or any(text in str(error) for text in sentences)


def out_of_memory(place: str, error: Exception | None) -> "DeviceMemoryError":
    """Tells in a sentence what torch tells in many; error: None where another process met it."""
    lines = [] if error is None else str(error).splitlines()
    fact = lines[0] if lines else "no memory left"
    remedy = "lower training.row_tokens or training.rows_at_once, as train --auto-fit does"
    return DeviceMemoryError(problem(place, fact, remedy))


class FinetoothError(Exception):
    """A failure to be told in plain sentences, never as a traceback.

    `problems` holds every problem; the text shows the first 50 and counts the rest.
    """

    exit_code = 1
    phase: str | None = None
    """What a run of several processes was doing: "step 17, forward"."""

    def __init__(self, problems: str | Iterable[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        assert self.problems, "an error needs at least one problem"
        super().__init__(self.problems)

    def __str__(self) -> str:
        shown = self.problems[:MAX_PROBLEMS_SHOWN]
        hidden = len(self.problems) - len(shown)
        return "\n".join([*shown, f"… and {hidden} more"] if hidden else shown)


class ConfigError(FinetoothError):
    """A mistake in run.yaml or on the command line."""

    exit_code = 2


class DataError(FinetoothError):
    """Records, a template or a store that cannot be used as they are."""

    exit_code = 3


class DeviceMemoryError(FinetoothError):
    """The device's memory does not hold the work."""

    exit_code = 4


class DiskFullError(FinetoothError):
    """The disk has no room for what is to be written."""


class NonFiniteError(FinetoothError):
    """A loss or gradient is infinite or not a number; the parameters were not touched."""


class Stopped(FinetoothError):  # noqa: N818 - what was asked for, not a failure
    """The run was asked to stop and saved its state; `exit_code` is 75, or 130 after SIGINT."""

    def __init__(self, problems: str | Iterable[str], *, exit_code: int = 75):
        super().__init__(problems)
        self.exit_code = exit_code


class ToldElsewhere(Stopped):
    """Another process of the run tells the reason; this one ends with the same exit code and says nothing.

    problems: the reason, where it is known; for results, as people have read it.
    """

    def __init__(self, problems: str | Iterable[str] = "told by another process", *, exit_code: int):
        super().__init__(problems, exit_code=exit_code)
