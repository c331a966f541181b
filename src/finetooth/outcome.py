"""How a command ends: with its result, or with sentences and an exit code."""

import atexit
import contextlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand

from finetooth.base.errors import (
    FinetoothError,
    Stopped,
    ToldElsewhere,
    is_out_of_memory,
    out_of_memory,
    problem,
)
from finetooth.base.terminal import make_visible


class Command(TyperCommand):
    """A command whose function finds the console to talk to in `context.obj` and returns its result.

    With --json only the result reaches standard output, whatever libraries print. A result that says
    `"passed": false` is exit code 1.
    """

    def invoke(self, ctx: Any) -> None:
        """Calls the function; tells a failure in sentences."""
        from rich.console import Console

        as_json = ctx.params.get("as_json", False)
        ctx.obj = Console(stderr=as_json)
        try:
            with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
                result = super().invoke(ctx)
            line = _as_line(result) if as_json else None
        except FinetoothError as error:
            _fail(error, as_json=as_json)
        except KeyboardInterrupt:
            _fail(Stopped("interrupted", exit_code=130), as_json=as_json)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            _fail(out_of_memory("memory", error), as_json=as_json)
        if line is not None and _rank() == 0:
            print(line)
        if result is not None and not result.get("passed", True):
            raise typer.Exit(1)


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """Ends the process without taking the interpreter down first, which takes seconds once a model is loaded.

    Besides, threads through which ranks talk may still let go of tensors. They need the interpreter for it;
    where it is gone by then, C++ aborts the process ("terminate called"), and a finished run seems to fail.
    """
    try:
        yield
    except SystemExit as ended:
        if not isinstance(ended.code, int | None):
            raise
        atexit._run_exitfuncs()  # temporary folders are removed, and what libraries began is ended
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(BrokenPipeError):  # whoever read it has gone
                stream.flush()
        os._exit(ended.code or 0)


def _fail(error: FinetoothError, *, as_json: bool) -> NoReturn:
    """Tells a failure, once for all ranks, and ends the process with its exit code."""
    if isinstance(error, Stopped) and _rank():
        raise typer.Exit(error.exit_code)  # rank 0 tells
    if not isinstance(error, ToldElsewhere):
        place = f"rank {_rank()}, " if _rank() else ""
        lines = [make_visible(line) for line in error.problems]
        text = str(FinetoothError([line if line.startswith("rank ") else place + line for line in lines]))
        is_coloured = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
        print(f"\x1b[31m{text}\x1b[0m" if is_coloured else text, file=sys.stderr)
    if as_json and _rank() == 0:
        print(json.dumps({"error": error.problems, "exit_code": error.exit_code}))
    raise typer.Exit(error.exit_code)


def _as_line(result: dict[str, Any] | None) -> str:
    try:
        return json.dumps(result, allow_nan=False)
    except ValueError:
        fact, remedy = "holds a number that is infinite or not a number", "look at it without --json"
        raise FinetoothError(problem("result", fact, remedy)) from None


def _rank() -> int:
    """This process among those of a run that share its work; rank 0 talks to people."""
    rank = os.environ.get("RANK", "0")
    return int(rank) if rank.isdecimal() else 0
