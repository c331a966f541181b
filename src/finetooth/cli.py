"""The command line: parses, calls one verb, prints its result, turns failures into sentences and exit codes.

Nothing heavy is imported before a command runs, so `finetooth --help` is quick; settings are read before a
verb is imported, so a mistake in them is told at once.
"""

import io
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetooth import __version__
from finetooth.ahead import preparing_ahead
from finetooth.arguments import (
    AsJson,
    DType,
    Form,
    Layout,
    MaxNewTokens,
    Offline,
    Overrides,
    Records,
    Resume,
    RunFile,
    Target,
    Targets,
    What,
    load_for,
    load_settings,
    read_prompts,
    spell_out_resume,
    split_targets,
    without_nproc,
)
from finetooth.base.errors import ConfigError, FinetoothError, problem
from finetooth.base.stopping import StopRequest
from finetooth.outcome import ending_at_once, fail, run_verb
from finetooth.shells import Shell, answer_shells, script_for

if TYPE_CHECKING:
    from rich.console import Console


def main() -> None:
    """Runs the command line; ends the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # A thread that waits for another one soon sleeps: with the default, it burns the core that the other one
    # needs whenever another program is busy too. GNU's OpenMP reads this when torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    answer_shells()
    with ending_at_once():
        app(args=spell_out_resume(sys.argv[1:]), prog_name="finetooth")


def _print_version(asked: bool) -> None:
    if asked:
        print(f"finetooth {__version__}")
        raise typer.Exit


def _print_completion(shell: Shell | None) -> None:
    if shell is not None:
        print(script_for(shell), end="")
        raise typer.Exit


app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None
)


@app.callback()
def describe(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    completion: Annotated[
        Shell | None,
        typer.Option(
            callback=_print_completion, is_eager=True, help="Print the script with which a shell completes."
        ),
    ] = None,
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

    run_verb(verb, as_json=as_json)


@app.command()
def init(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="File, folder or pattern of records, or hf://NAME.")
    ],
    model: Annotated[
        str, typer.Option(metavar="M", help="Base model: folder, hub name, .pt file; or a config.json.")
    ],
    overrides: Overrides = None,
    preset: Annotated[
        What | None, typer.Option(show_default=False, help="What is trained; default: what memory holds.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The file to write.")] = Path("run.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there already.")] = False,
    as_json: AsJson = False,
    offline: Offline = False,
) -> None:
    """Write a first run.yaml for records and a base model."""

    def verb(console: "Console") -> dict[str, Any]:
        from finetooth.init import init as run

        chosen = None if preset is None else preset.value
        return run(
            data, model, preset=chosen, out=out, force=force, overrides=overrides or [], console=console
        )

    run_verb(verb, as_json=as_json)


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
        config = load_settings(run_file, overrides)
        from finetooth.prepare import prepare as run

        if to is None or out is None:
            return run(config, console=console)
        from finetooth.data.token_files.writing import Export

        return run(config, export=Export(out, to.value, row_length), console=console)

    run_verb(verb, as_json=as_json)


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
        config = load_settings(run_file, overrides)
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

    run_verb(verb, as_json=as_json)


@app.command()
def plan(
    run_file: RunFile,
    overrides: Overrides = None,
    world: Annotated[int, typer.Option(min=1, metavar="W", help="Number of ranks.")] = 1,
    gpu_memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory of each GPU: 80GB. Default: what is here.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Try the run out for a minute or two; tell its memory and time.")
    ] = False,
    as_json: AsJson = False,
    offline: Offline = False,
) -> None:
    """Say what a run will do, and what it needs of memory and time."""

    def verb(console: "Console") -> dict[str, Any]:
        # What --measure writes is removed when it is stopped, too.
        with StopRequest().listening() if measure else nullcontext():
            config = load_settings(run_file, overrides)
            from finetooth.plan import plan as run

            return run(config, world=world, gpu_memory=gpu_memory, measure=measure, console=console)

    run_verb(verb, as_json=as_json)


@app.command(hidden=True)
def trial(run_file: RunFile, as_json: AsJson = False) -> None:
    """Do once what a run does and tell what it takes; `plan --measure` starts it."""

    def verb(console: "Console") -> dict[str, Any]:
        config = load_settings(run_file, None)
        with preparing_ahead(run_file, ()):  # as `train` does it
            from finetooth.trial import trial as run

            return run(config, console=console)

    run_verb(verb, as_json=as_json)


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
        fail(ConfigError(problem("command line", fact, remedy)), as_json=as_json)
    if nproc > 1:
        from finetooth.training.launcher import launch

        try:
            load_settings(run_file, overrides)  # a mistake in the settings is told once, not by each process
        except FinetoothError as error:
            fail(error, as_json=as_json)
        raise typer.Exit(launch(without_nproc(sys.argv[1:]), num_processes=nproc))

    def verb(console: "Console") -> dict[str, Any]:
        with StopRequest().listening() as stop:  # from here on, as importing alone takes seconds
            config = load_settings(run_file, overrides)
            # A run that goes on may have to prepare for the day it began, which only `train` knows.
            ahead = preparing_ahead(run_file, overrides or ()) if resume is Resume.NEVER else nullcontext()
            with ahead:
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

    run_verb(verb, as_json=as_json)


@app.command()
def verify(
    run_file: RunFile,
    overrides: Overrides = None,
    as_json: AsJson = False,
    offline: Offline = False,
) -> None:
    """Prove on your own model and data what training promises."""

    def verb(console: "Console") -> dict[str, Any]:
        config = load_settings(run_file, overrides)
        from finetooth.verify import verify as run

        return run(config, console=console)

    result = run_verb(verb, as_json=as_json)
    if result is not None and not result["passed"]:
        raise typer.Exit(1)


@app.command(name="eval")
def evaluate(
    targets: Targets,
    config: Annotated[
        Path | None, typer.Option(metavar="RUN.yaml", help="Settings; by default those of the run.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Answer only N of the dev records.")
    ] = None,
    per_record: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Name the N records with the highest loss.")
    ] = None,
    of: Annotated[
        Records | None,
        typer.Option(show_default=False, help="Whose records --per-record names; default: dev."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write every answer to it, as JSON lines.")
    ] = None,
    as_json: AsJson = False,
    offline: Offline = False,
) -> None:
    """Measure losses, perplexity and answers, of one policy or several."""

    def verb(console: "Console") -> dict[str, Any]:
        if of is not None and per_record is None:
            fact, remedy = "--of belongs to --per-record", "give both, or leave it out"
            raise ConfigError(problem("command line", fact, remedy))
        names, overrides = split_targets(targets)
        settings = load_for(names, config, overrides)
        from finetooth.evaluate import evaluate as run

        named = (of or Records.DEV).value
        return run(names, settings, limit=limit, per_record=per_record, of=named, out=out, console=console)

    run_verb(verb, as_json=as_json)


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="Run directory, checkpoint or model folder.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Run directory, checkpoint or model folder.")],
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="A prompt; may be given several times.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A text file with one prompt per line.")
    ] = None,
    general: Annotated[
        bool, typer.Option("--general", help="Ask general prompts; tell how far B has moved from A.")
    ] = False,
    records: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Name N dev records that got better, N worse.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="RUN.yaml", help="Whose records; by default those of the run.")
    ] = None,
    max_new_tokens: MaxNewTokens = 256,
    as_json: AsJson = False,
    offline: Offline = False,
) -> None:
    """Compare two models by their answers and by records."""

    def verb(console: "Console") -> dict[str, Any]:
        texts = [*(prompt or []), *(read_prompts(prompts) if prompts else [])]
        if not texts and not general and records is None:
            remedy = "give --prompt TEXT or --prompts FILE, --general or --records N"
            raise ConfigError(problem("command line", "no prompt", remedy))
        if not all(text.strip() for text in texts):
            raise ConfigError(problem("command line", "an empty prompt", "give --prompt a text"))
        if config is not None and records is None:
            fact, remedy = "--config belongs to --records", "give both, or leave it out"
            raise ConfigError(problem("command line", fact, remedy))
        settings = None if records is None else load_for([first, second], config, [])
        from finetooth.compare import compare as run

        return run(
            first,
            second,
            prompts=texts,
            general=general,
            records=records,
            config=settings,
            max_new_tokens=max_new_tokens,
            console=console,
        )

    run_verb(verb, as_json=as_json)


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

    run_verb(verb, as_json=False)


@app.command(name="env")
def environment(as_json: AsJson = False) -> None:
    """Show versions, devices, and which precision pays here."""

    def verb(console: "Console") -> dict[str, Any]:
        from finetooth.environment import environment as run

        return run(console=console)

    run_verb(verb, as_json=as_json)


@app.command()
def export(
    target: Annotated[
        str, typer.Argument(metavar="RUN_OR_PT", help="Directory of a finished run, or a .pt file.")
    ],
    to: Annotated[
        Form,
        typer.Option(help="All parameters; an adapter, alone or in its base; pt: as the base was."),
    ] = Form.FOLDER,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder to write; must not exist. Default: RUN/export/FORM."),
    ] = None,
    dtype: Annotated[DType, typer.Option(help="The type of the parameters.")] = DType.FP32,
    shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Most that one file holds.")] = "5GB",
    check: Annotated[
        bool, typer.Option("--verify", help="Load what was written in a fresh process; compare it.")
    ] = False,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Tokenizer to put beside the model of a .pt file.")
    ] = None,
    as_json: AsJson = False,
    offline: Offline = False,
) -> None:
    """Write the policy for other programs."""

    def verb(console: "Console") -> dict[str, Any]:
        from finetooth.export import export as run

        return run(
            target,
            to=to.value,
            out=out,
            dtype=dtype.value,
            shard_size=shard_size,
            verify=check,
            tokenizer=tokenizer,
            console=console,
        )

    result = run_verb(verb, as_json=as_json)
    if result is not None and not result.get("passed", True):
        raise typer.Exit(1)


@app.command()
def report(
    targets: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run directories.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The page. Default: RUN/report.html, comparison.html.")
    ] = None,
    as_json: AsJson = False,
    offline: Offline = False,
) -> None:
    """Write a run, or several side by side, as one page."""

    def verb(console: "Console") -> dict[str, Any]:
        from finetooth.report import report as run

        return run(targets, out=out, console=console)

    run_verb(verb, as_json=as_json)
