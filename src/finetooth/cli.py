"""The command line: each command is a function that calls one verb and returns its result.

Nothing heavy is imported before a command runs, so `finetooth --help` is quick; settings are read before a
verb is imported, so a mistake in them is told at once.
"""

import io
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import typer

from finetooth import options
from finetooth.ahead import preparing_ahead
from finetooth.arguments import (
    gather_prompts,
    load_for,
    load_settings,
    mistake,
    spell_out_resume,
    split_targets,
    without_nproc,
)
from finetooth.base.stopping import StopRequest
from finetooth.outcome import Command, ending_at_once
from finetooth.shells import answer_shells


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


app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None
)


@app.callback()
def describe(version: options.Version = False, completion: options.Completion = None) -> None:
    """Supervised fine-tuning of causal language models in which every token is accounted for."""


@app.command(cls=Command)
def demo(
    context: typer.Context,
    out: options.DemoFolder = Path("runs/demo"),
    as_json: options.AsJson = False,
    offline: options.Offline = False,
) -> dict[str, Any]:
    """Tell the whole story on the built-in model: no network, no GPU."""
    from finetooth.demo import demo as run

    return run(out, console=context.obj)


@app.command(cls=Command)
def init(
    context: typer.Context,
    data: options.Data,
    model: options.Base,
    overrides: options.Overrides = None,
    preset: options.Preset = None,
    out: options.NewRunFile = Path("run.yaml"),
    force: options.Force = False,
    as_json: options.AsJson = False,
    offline: options.Offline = False,
) -> dict[str, Any]:
    """Write a first run.yaml for records and a base model."""
    from finetooth.init import init as run

    chosen = None if preset is None else preset.value
    return run(
        data, model, preset=chosen, out=out, force=force, overrides=overrides or [], console=context.obj
    )


@app.command(cls=Command)
def prepare(
    context: typer.Context,
    run_file: options.RunFile,
    overrides: options.Overrides = None,
    to: options.ToLayout = None,
    out: options.LayoutFolder = None,
    row_length: options.RowLength = 1024,
    as_json: options.AsJson = False,
    offline: options.Offline = False,
) -> dict[str, Any]:
    """Turn records into documents and account for every one."""
    if (to is None) != (out is None):
        raise mistake("--to and --out belong together", "give both or neither")
    config = load_settings(run_file, overrides)
    from finetooth.prepare import prepare as run

    if to is None or out is None:
        return run(config, console=context.obj)
    from finetooth.data.token_files.writing import Export

    return run(config, export=Export(out, to.value, row_length), console=context.obj)


@app.command(cls=Command)
def inspect(
    context: typer.Context,
    run_file: options.RunFile,
    overrides: options.Overrides = None,
    record: options.Record = None,
    step: options.Step = None,
    rank: options.Rank = None,
    world: options.WorldOfStep = None,
    row: options.Row = None,
    ids: options.Ids = False,
    html: options.Page = None,
    as_json: options.AsJson = False,
    offline: options.Offline = False,
) -> dict[str, Any]:
    """Look at records, masks and steps, token by token."""
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
        console=context.obj,
    )


@app.command(cls=Command)
def plan(
    context: typer.Context,
    run_file: options.RunFile,
    overrides: options.Overrides = None,
    world: options.World = 1,
    gpu_memory: options.GpuMemory = None,
    measure: options.Measure = False,
    as_json: options.AsJson = False,
    offline: options.Offline = False,
) -> dict[str, Any]:
    """Say what a run will do, and what it needs of memory and time."""
    # What --measure writes is removed when it is stopped, too.
    with StopRequest().listening() if measure else nullcontext():
        config = load_settings(run_file, overrides)
        from finetooth.plan import plan as run

        return run(config, world=world, gpu_memory=gpu_memory, measure=measure, console=context.obj)


@app.command(cls=Command, hidden=True)
def trial(
    context: typer.Context, run_file: options.RunFile, as_json: options.AsJson = False
) -> dict[str, Any]:
    """Do once what a run does and tell what it takes; `plan --measure` starts it."""
    config = load_settings(run_file, None)
    with preparing_ahead(run_file, ()):  # as `train` does it
        from finetooth.trial import trial as run

        return run(config, console=context.obj)


@app.command(cls=Command)
def train(
    context: typer.Context,
    run_file: options.RunFile,
    overrides: options.Overrides = None,
    resume: options.ToResume = options.Resume.NEVER,
    accept_changes: options.AcceptChanges = False,
    overfit: options.Overfit = None,
    nproc: options.NumProcesses = 1,
    auto_fit: options.AutoFit = False,
    as_json: options.AsJson = False,
    offline: options.Offline = False,
) -> dict[str, Any]:
    """Train the policy."""
    is_new = resume is options.Resume.NEVER
    if accept_changes and is_new:
        raise mistake("--accept-changes belongs to --resume", "give both, or leave it out")
    if nproc > 1:
        load_settings(run_file, overrides)  # a mistake in the settings is told once, not by each process
        from finetooth.training.launcher import launch

        raise typer.Exit(launch(without_nproc(sys.argv[1:]), num_processes=nproc))
    with StopRequest().listening() as stop:  # from here on, as importing alone takes seconds
        config = load_settings(run_file, overrides)
        # A run that goes on may have to prepare for the day it began, which only `train` knows.
        with preparing_ahead(run_file, overrides or ()) if is_new else nullcontext():
            from finetooth.train import train as run

            return run(
                config,
                resume=resume.value,
                accept_changes=accept_changes,
                overfit=overfit,
                auto_fit=auto_fit,
                console=context.obj,
                stop=stop,
            )


@app.command(cls=Command)
def verify(
    context: typer.Context,
    run_file: options.RunFile,
    overrides: options.Overrides = None,
    as_json: options.AsJson = False,
    offline: options.Offline = False,
) -> dict[str, Any]:
    """Prove on your own model and data what training promises."""
    config = load_settings(run_file, overrides)
    from finetooth.verify import verify as run

    return run(config, console=context.obj)


@app.command(cls=Command, name="eval")
def evaluate(
    context: typer.Context,
    targets: options.Targets,
    config: options.SettingsFile = None,
    limit: options.Limit = None,
    per_record: options.PerRecord = None,
    of: options.OfRecords = None,
    out: options.AnswersFile = None,
    as_json: options.AsJson = False,
    offline: options.Offline = False,
) -> dict[str, Any]:
    """Measure losses, perplexity and answers, of one policy or several."""
    if of is not None and per_record is None:
        raise mistake("--of belongs to --per-record", "give both, or leave it out")
    names, overrides = split_targets(targets)
    settings = load_for(names, config, overrides)
    from finetooth.evaluate import evaluate as run

    named = (of or options.Records.DEV).value
    return run(names, settings, limit=limit, per_record=per_record, of=named, out=out, console=context.obj)


@app.command(cls=Command)
def compare(
    context: typer.Context,
    first: options.First,
    second: options.Second,
    prompt: options.Prompts = None,
    prompts: options.PromptsFile = None,
    general: options.General = False,
    records: options.ChangedRecords = None,
    config: options.RecordsFile = None,
    max_new_tokens: options.MaxNewTokens = 256,
    as_json: options.AsJson = False,
    offline: options.Offline = False,
) -> dict[str, Any]:
    """Compare two models by their answers and by records."""
    texts = gather_prompts(prompt or [], prompts)
    if not texts and not general and records is None:
        raise mistake("no prompt", "give --prompt TEXT or --prompts FILE, --general or --records N")
    if config is not None and records is None:
        raise mistake("--config belongs to --records", "give both, or leave it out")
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
        console=context.obj,
    )


@app.command(cls=Command)
def chat(
    context: typer.Context,
    target: options.Target,
    system: options.System = None,
    max_new_tokens: options.MaxNewTokens = 256,
    offline: options.Offline = False,
) -> None:
    """Talk to a policy, with the template of its training."""
    from finetooth.chat import chat as run

    run(target, system=system, max_new_tokens=max_new_tokens, console=context.obj)


@app.command(cls=Command, name="env")
def environment(context: typer.Context, as_json: options.AsJson = False) -> dict[str, Any]:
    """Show versions, devices, and which precision pays here."""
    from finetooth.environment import environment as run

    return run(console=context.obj)


@app.command(cls=Command)
def export(
    context: typer.Context,
    target: options.Exported,
    to: options.ToForm = options.Form.FOLDER,
    out: options.ExportFolder = None,
    dtype: options.WrittenType = options.DType.FP32,
    shard_size: options.ShardSize = "5GB",
    check: options.Verify = False,
    tokenizer: options.TokenizerFolder = None,
    as_json: options.AsJson = False,
    offline: options.Offline = False,
) -> dict[str, Any]:
    """Write the policy for other programs."""
    from finetooth.export import export as run

    return run(
        target,
        to=to.value,
        out=out,
        dtype=dtype.value,
        shard_size=shard_size,
        verify=check,
        tokenizer=tokenizer,
        console=context.obj,
    )


@app.command(cls=Command)
def report(
    context: typer.Context,
    targets: options.Runs,
    out: options.ReportFile = None,
    as_json: options.AsJson = False,
    offline: options.Offline = False,
) -> dict[str, Any]:
    """Write a run, or several side by side, as one page."""
    from finetooth.report import report as run

    return run(targets, out=out, console=context.obj)
