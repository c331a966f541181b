"""The command line: parses, calls one verb, prints its result, turns failures into sentences and exit codes.

Nothing heavy is imported before a command runs, so `finetooth --help` is quick; settings are read before a
verb is imported, so a mistake in them is told at once.
"""

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetooth import __version__
from finetooth.base.errors import (
    ConfigError,
    FinetoothError,
    Stopped,
    ToldElsewhere,
    is_out_of_memory,
    out_of_memory,
    problem,
)
from finetooth.base.stopping import StopRequest
from finetooth.base.terminal import make_visible

if TYPE_CHECKING:
    from rich.console import Console

    from finetooth.config.schema import SFTConfig


def main() -> None:
    """Runs the command line; ends the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # A thread that waits for another one soon sleeps: with the default, it burns the core that the other one
    # needs whenever another program is busy too. GNU's OpenMP reads this when torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    app(args=spell_out_resume(sys.argv[1:]), prog_name="finetooth")


def spell_out_resume(arguments: Iterable[str]) -> list[str]:
    """Gives `--resume` its value, so that no other argument is taken for it.

    >>> spell_out_resume(["train", "--resume", "run.yaml"]), spell_out_resume(["--resume", "auto"])
    (['train', '--resume=must', 'run.yaml'], ['--resume=auto'])
    """
    spelled: list[str] = []
    for argument in arguments:
        if argument == "auto" and spelled and spelled[-1] == "--resume=must":
            spelled[-1] = "--resume=auto"
        else:
            spelled.append("--resume=must" if argument == "--resume" else argument)
    return spelled


class Resume(StrEnum):
    """What `train` does where the run directory already holds a run."""

    NEVER = "never"
    MUST = "must"
    AUTO = "auto"


class Layout(StrEnum):
    """How `prepare --to` writes documents for other systems."""

    H5 = "h5"
    BIN = "bin"
    JSONL = "jsonl"


class Form(StrEnum):
    """What `export --to` writes."""

    FOLDER = "folder"


class DType(StrEnum):
    """The type in which `export` writes parameters."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


def _print_version(asked: bool) -> None:
    if asked:
        print(f"finetooth {__version__}")
        raise typer.Exit


def _go_offline(asked: bool) -> None:
    if asked:
        os.environ["HF_HUB_OFFLINE"] = "1"


RunFile = Annotated[Path, typer.Argument(metavar="RUN.yaml", help="File with the settings of the run.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings that win over the file: learning_rate=1e-4"),
]
Target = Annotated[str, typer.Argument(metavar="RUN_OR_MODEL", help="Run directory or model folder.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Offline = Annotated[
    bool, typer.Option("--offline", callback=_go_offline, is_eager=True, help="Fetch nothing from the hub.")
]

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None
)


@app.callback()
def describe(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Supervised fine-tuning of causal language models in which every token is accounted for."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder the demo writes to.")] = Path("runs/demo"),
    as_json: AsJson = False,
    offline: Offline = False,
) -> None:
    """Tell the whole story on the built-in model: no network, no GPU."""

    def verb(console: "Console") -> dict[str, Any]:
        from finetooth.demo import demo as run

        return run(out, console=console)

    _run(verb, as_json=as_json)


@app.command()
def prepare(
    run_file: RunFile,
    overrides: Overrides = None,
    to: Annotated[
        Layout | None,
        typer.Option(show_default=False, help="Write the documents for other systems besides; needs --out."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder that --to writes; must not exist yet.")
    ] = None,
    row_length: Annotated[int, typer.Option(min=2, max=2**22, help="Tokens per row of --to h5.")] = 1024,
    as_json: AsJson = False,
    offline: Offline = False,
) -> None:
    """Turn records into documents and account for every one."""

    def verb(console: "Console") -> dict[str, Any]:
        if (to is None) != (out is None):
            fact, remedy = "--to and --out belong together", "give both or neither"
            raise ConfigError(problem("command line", fact, remedy))
        config = _load(run_file, overrides)
        from finetooth.prepare import prepare as run

        if to is None or out is None:
            return run(config, console=console)
        from finetooth.data.token_files.writing import Export

        return run(config, export=Export(out, to.value, row_length), console=console)

    _run(verb, as_json=as_json)


@app.command()
def inspect(
    run_file: RunFile,
    overrides: Overrides = None,
    record: Annotated[
        str | None,
        typer.Option(metavar="N", help="One record: its number from 1, or FILE:LINE as the ledger has it."),
    ] = None,
    step: Annotated[
        int | None, typer.Option(min=1, metavar="K", help="The documents and rows of this update.")
    ] = None,
    rank: Annotated[
        int | None, typer.Option(min=0, metavar="R", help="Of the step, the rows of this rank, from 0.")
    ] = None,
    world: Annotated[int | None, typer.Option(min=1, metavar="W", help="Number of ranks.")] = None,
    row: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Of the step, the tokens of this row, from 1.")
    ] = None,
    ids: Annotated[bool, typer.Option("--ids", help="One line per token, with its id.")] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write samples, or the record, as a page.")
    ] = None,
    as_json: AsJson = False,
    offline: Offline = False,
) -> None:
    """Look at records, masks and steps, token by token."""

    def verb(console: "Console") -> dict[str, Any]:
        config = _load(run_file, overrides)
        from finetooth.inspect_data import inspect as run

        return run(
            config,
            record=record,
            step=step,
            rank=rank,
            world=world,
            row=row,
            ids=ids,
            html=html,
            console=console,
        )

    _run(verb, as_json=as_json)


@app.command()
def train(
    run_file: RunFile,
    overrides: Overrides = None,
    resume: Annotated[
        Resume,
        typer.Option(
            metavar="[auto]",
            show_default=False,
            help="Go on with the run in output_dir; auto starts it if there is none.",
        ),
    ] = Resume.NEVER,
    accept_changes: Annotated[
        bool,
        typer.Option("--accept-changes", help="Go on although settings or records changed; it is recorded."),
    ] = False,
    overfit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Train on the first N documents only.")
    ] = None,
    nproc: Annotated[
        int, typer.Option(min=1, metavar="N", help="Share the work among N processes of this machine.")
    ] = 1,
    auto_fit: Annotated[
        bool, typer.Option("--auto-fit", help="Shorten rows that the device's memory does not hold.")
    ] = False,
    as_json: AsJson = False,
    offline: Offline = False,
) -> None:
    """Train the policy."""
    if accept_changes and resume is Resume.NEVER:
        fact, remedy = "--accept-changes belongs to --resume", "give both, or leave it out"
        _fail(ConfigError(problem("command line", fact, remedy)), as_json=as_json)
    if nproc > 1:
        from finetooth.training.launcher import launch

        try:
            _load(run_file, overrides)  # a mistake in the settings is told once, not by each process
        except FinetoothError as error:
            _fail(error, as_json=as_json)
        raise typer.Exit(launch(_without_nproc(sys.argv[1:]), num_processes=nproc))

    def verb(console: "Console") -> dict[str, Any]:
        with StopRequest().listening() as stop:  # from here on, as importing alone takes seconds
            config = _load(run_file, overrides)
            from finetooth.train import train as run

            return run(
                config,
                resume=resume.value,
                accept_changes=accept_changes,
                overfit=overfit,
                auto_fit=auto_fit,
                console=console,
                stop=stop,
            )

    _run(verb, as_json=as_json)


@app.command()
def verify(
    run_file: RunFile,
    overrides: Overrides = None,
    as_json: AsJson = False,
    offline: Offline = False,
) -> None:
    """Prove on your own model and data what training promises."""

    def verb(console: "Console") -> dict[str, Any]:
        config = _load(run_file, overrides)
        from finetooth.verify import verify as run

        return run(config, console=console)

    result = _run(verb, as_json=as_json)
    if result is not None and not result["passed"]:
        raise typer.Exit(1)


@app.command(name="eval")
def evaluate(
    target: Target,
    overrides: Overrides = None,
    config: Annotated[
        Path | None, typer.Option(metavar="RUN.yaml", help="Settings; by default those of the run.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Answer only N of the dev records.")
    ] = None,
    as_json: AsJson = False,
    offline: Offline = False,
) -> None:
    """Measure losses, perplexity and answers."""

    def verb(console: "Console") -> dict[str, Any]:
        settings = _load_for(target, config, overrides)
        from finetooth.evaluate import evaluate as run

        return run(target, settings, limit=limit, console=console)

    _run(verb, as_json=as_json)


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="Run directory or model folder.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Run directory or model folder.")],
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="A prompt; may be given several times.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A text file with one prompt per line.")
    ] = None,
    max_new_tokens: MaxNewTokens = 256,
    as_json: AsJson = False,
    offline: Offline = False,
) -> None:
    """Answer the same prompts with two models, side by side."""

    def verb(console: "Console") -> dict[str, Any]:
        texts = [*(prompt or []), *(_read_prompts(prompts) if prompts else [])]
        if not texts:
            raise ConfigError(problem("command line", "no prompt", "give --prompt TEXT or --prompts FILE"))
        if not all(text.strip() for text in texts):
            raise ConfigError(problem("command line", "an empty prompt", "give --prompt a text"))
        from finetooth.compare import compare as run

        return run(first, second, prompts=texts, max_new_tokens=max_new_tokens, console=console)

    _run(verb, as_json=as_json)


@app.command()
def chat(
    target: Target,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System text.")] = None,
    max_new_tokens: MaxNewTokens = 256,
    offline: Offline = False,
) -> None:
    """Talk to a policy, with the template of its training."""

    def verb(console: "Console") -> None:
        from finetooth.chat import chat as run

        run(target, system=system, max_new_tokens=max_new_tokens, console=console)

    _run(verb, as_json=False)


@app.command()
def export(
    target: Annotated[str, typer.Argument(metavar="RUN", help="Directory of a finished run.")],
    to: Annotated[Form, typer.Option(help="What to write: folder, the whole policy.")] = Form.FOLDER,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder to write; must not exist. Default: RUN/export/FORM."),
    ] = None,
    dtype: Annotated[DType, typer.Option(help="The type of the parameters.")] = DType.FP32,
    shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Most that one file holds.")] = "5GB",
    as_json: AsJson = False,
    offline: Offline = False,
) -> None:
    """Write the policy for other programs."""

    def verb(console: "Console") -> dict[str, Any]:
        from finetooth.export import export as run

        return run(target, to=to.value, out=out, dtype=dtype.value, shard_size=shard_size, console=console)

    _run(verb, as_json=as_json)


def _without_nproc(arguments: list[str]) -> list[str]:
    """The command that each process runs.

    >>> _without_nproc(["train", "--nproc", "2", "run.yaml", "--nproc=2"])
    ['train', 'run.yaml']
    """
    places = {place for place, argument in enumerate(arguments) if argument == "--nproc"}
    dropped = places | {place + 1 for place in places}
    kept = [argument for place, argument in enumerate(arguments) if place not in dropped]
    return [argument for argument in kept if not argument.startswith("--nproc=")]


def _load(run_file: Path, overrides: list[str] | None) -> "SFTConfig":
    from finetooth.config.load import load_config

    return load_config(run_file, overrides or [])


def _load_for(target: str, config: Path | None, overrides: list[str] | None) -> "SFTConfig | None":
    """The settings that `eval` was given; None leaves it to those the run was trained with."""
    if config is None and not overrides:
        return None
    return _load(config or Path(target) / "config.yaml", overrides)


def _read_prompts(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise ConfigError(problem(path, f"cannot be read: {reason}", "name a text file")) from None


def _run(verb: Callable[["Console"], dict[str, Any] | None], *, as_json: bool) -> dict[str, Any] | None:
    """Calls a verb; with `as_json` only the result reaches standard output, whatever libraries print.

    Returns what the verb does.
    """
    from rich.console import Console

    quiet = contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
    try:
        with quiet:
            result = verb(Console(stderr=as_json))
        line = _as_line(result) if as_json else None
    except FinetoothError as error:
        _fail(error, as_json=as_json)
    except KeyboardInterrupt:
        _fail(Stopped("interrupted", exit_code=130), as_json=as_json)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        _fail(out_of_memory("memory", error), as_json=as_json)
    else:
        if line is not None and _rank() == 0:
            print(line)
        return result
    return None


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


def _fail(error: FinetoothError, *, as_json: bool) -> None:
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
