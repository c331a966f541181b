"""The verb `export`: the policy of a finished run, or a `.pt` file, in a form that other programs load."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from finetooth.base.devices import DeviceManager
from finetooth.base.errors import ConfigError, problem
from finetooth.base.terminal import print_line
from finetooth.data.preparation import PreparedData, prepare_data
from finetooth.data.templates.template import resolve_template
from finetooth.data.tokenizer.tokenizer import load_tokenizer
from finetooth.evaluation.dev_loss import sample_documents
from finetooth.evaluation.speaker import load_target
from finetooth.evaluation.targets import find_target, told_time
from finetooth.model.legacy.reading import is_legacy
from finetooth.reporting.model_card import model_card
from finetooth.reporting.run_facts import read_facts
from finetooth.reporting.serving import Form
from finetooth.reporting.template_proof import Rendering, differing, renderings
from finetooth.reporting.verdicts import Verdict, conclude, skipped, verdicts_table
from finetooth.training.exports import FinishedRun, open_run, write_export
from finetooth.training.legacy_export import require_twin, write_pt_as_folder, write_run_as_pt
from finetooth.training.reloading import (
    BaseOfAdapter,
    Behaviour,
    Questions,
    Reloaded,
    as_many_as_fit,
    behaviour_of,
    distance,
    reload,
)
from finetooth.training.run_directory import write_json

DType = Literal["fp32", "bf16", "fp16"]

VERIFIED_DOCUMENTS = 64
QLORA_NOTE = (
    "merged into the base as its 4 bits have it, which is what was trained; each linear layer differs "
    "from the original by the rounding to 4 bits, and beside the original the adapter is another policy"
)
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True, slots=True)
class _Limits:
    """How far an export may be from the policy that was trained.

    logits:  the largest difference of a logit
    kl:      the mean KL divergence of the next token, in nats
    answers: the share of greedy answers that may differ, and of answers that may stop otherwise
    """

    logits: float
    kl: float
    answers: float


# Numbers of 16 bits change every parameter, by up to 0.4 % (bf16) or 0.05 % (fp16).
LIMITS = {
    "fp32": _Limits(logits=1e-4, kl=1e-6, answers=0.0),
    "fp16": _Limits(logits=0.125, kl=1e-3, answers=0.05),
    "bf16": _Limits(logits=1.0, kl=1e-2, answers=0.1),
}


def export(
    target: str,
    *,
    to: Form = "folder",
    out: Path | None = None,
    dtype: DType = "fp32",
    shard_size: str = "5GB",
    verify: bool = False,
    tokenizer: str | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Writes the policy of a run; returns where it stands and how large it is.

    target:     a run directory, or a `.pt` file of a described system, which becomes a folder
    out:        the folder to write, by default export/ of the run directory
    shard_size: how much a file of parameters holds at most: 500MB, 5GB
    verify:     whether a fresh process loads what was written and is held against the policy; the verdicts
                are returned, `passed` among them
    tokenizer:  folder or hub name of a `.pt` file's tokenizer, whose files are put into the folder
    Raises ConfigError for a run that has not finished, or where something stands at `out` already.
    """
    console = console or Console(quiet=True)
    shard_bytes = _bytes_of(shard_size)
    if is_legacy(target):
        out = _place_of_file(out, to, verify)
        _require_absent(out)
        write_pt_as_folder(target, out, dtype=dtype, shard_bytes=shard_bytes, tokenizer=tokenizer)
        return _tell(out, to, dtype, console)
    if tokenizer is not None:
        raise ConfigError(problem("--tokenizer", "a run has its own", "leave it out"))
    run = open_run(target)
    _refuse_other_forms(run, to)
    out = out or run.folder / "export" / to
    _require_absent(out)
    if to == "pt":
        _refuse_for_pt(dtype, verify)
        write_run_as_pt(run, out)
    else:
        _write_folder(run, out, to, dtype, shard_bytes)
    result = _tell(out, to, dtype, console)
    if to == "merged" and run.adapter == "qlora":
        print_line(console, QLORA_NOTE)
    if verify:
        result |= _verify(run, out, to, dtype, console)
        write_json(run.folder / "verified.json", result)
    return result


def _place_of_file(out: Path | None, to: Form, verify: bool) -> Path:
    """Where a `.pt` file is written to as a folder."""
    if to != "folder":
        raise ConfigError(problem("--to", "a .pt file becomes a folder only", "write --to folder"))
    if verify:
        raise ConfigError(problem("--verify", "a .pt file has no records to be asked", "leave it out"))
    if out is None:
        raise ConfigError(
            problem("--out", "a .pt file has no run directory to write to", "name a new folder")
        )
    return out


def _refuse_other_forms(run: FinishedRun, to: Form) -> None:
    """Raises ConfigError where a run has no policy of that form."""
    if run.adapter is None and to in ("adapter", "merged"):
        fact, remedy = f"{run.folder} trained all parameters and has no adapter", "write --to folder"
    elif run.adapter is not None and to in ("folder", "pt"):
        fact, remedy = f"{run.folder} trained an adapter", "write --to adapter, or --to merged"
    else:
        return
    raise ConfigError(problem(f"--to {to}", fact, remedy))


def _require_absent(out: Path) -> None:
    if out.exists():
        raise ConfigError(problem("--out", f"{out} exists", "name a new folder, or remove it"))


def _refuse_for_pt(dtype: DType, verify: bool) -> None:
    if dtype != "fp32":
        raise ConfigError(problem("--dtype", "pt is written in fp32", "leave it out"))
    if verify:
        fact = "a fresh process without finetooth cannot load pt"
        raise ConfigError(problem("--verify", fact, "leave it out; finetooth eval reads what was written"))


def _write_folder(run: FinishedRun, out: Path, to: Form, dtype: DType, shard_bytes: int) -> None:
    assert to != "pt", "that is written without transformers"
    require_twin(run)
    facts = read_facts(run.folder, run.config)
    template = resolve_template("own", load_tokenizer(str(run.final)))
    card = model_card(facts, template, form=to, dtype=dtype)
    write_export(run, out, form=to, dtype=dtype, shard_bytes=shard_bytes, card=card)


def _tell(out: Path, to: Form, dtype: DType, console: Console) -> dict[str, Any]:
    """What was written, printed and returned."""
    num_bytes = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print_line(console, f"{to}: {out}, {num_bytes / 1e6:,.1f} MB, {dtype}")
    return {"to": to, "out": str(out), "dtype": dtype, "num_bytes": num_bytes}


def _verify(run: FinishedRun, out: Path, to: Form, dtype: DType, console: Console) -> dict[str, Any]:
    """Holds what was written against the policy and the records, and prints the verdicts."""
    config, devices = run.config, DeviceManager(run.config.training.device, "fp32")
    prepared = prepare_data(config, console=console, now=told_time(run.folder))
    split, source = ("train", prepared.train) if prepared.dev is None else ("dev", prepared.dev)
    numbers = sample_documents(source, VERIFIED_DOCUMENTS, seed=config.training.seed)
    documents = [source.document(number) for number in numbers.tolist()]
    expected, num_passed_over = renderings(prepared, config, documents, split=split)
    with console.status("Asking the policy …"):
        policy = load_target(find_target(str(run.folder)), devices=devices)
        asked = Questions(
            documents=as_many_as_fit(documents, vocab_size=policy.vocab_size),
            prompts=[d.token_ids[: d.prompt_length].tolist() for d in documents if d.prompt_length],
            conversations=[one.request for one in expected],
            max_new_tokens=config.evaluation.max_new_tokens,
        )
        stops = prepared.template.stop_token_ids
        trained = behaviour_of(policy, asked, stop_token_ids=stops, devices=devices)
        del policy
    with console.status("Asking what was written …"):
        base = BaseOfAdapter(dtype, run.adapter == "qlora") if to == "adapter" else None
        reloaded = reload(out, asked, device=str(devices.device), base=base)
    verdicts = [
        *_judge_behaviour(trained, reloaded, LIMITS[dtype]),
        _judge_stop_tokens(prepared, reloaded),
        _judge_template(prepared, expected, reloaded, num_passed_over),
    ]
    console.print(verdicts_table(verdicts))
    return {
        **conclude(verdicts, console),
        "split": split,
        "num_documents": len(documents),
        "num_documents_computed": len(asked.documents),
    }


def _judge_behaviour(trained: Behaviour, reloaded: Reloaded, limits: _Limits) -> Iterator[Verdict]:
    found = distance(trained, reloaded.behaviour)
    where = f"{len(trained.logits)} documents, {found.num_positions:,} positions"
    what = f"largest difference of a logit: {where}; plain transformers in {reloaded.dtype}"
    yield Verdict("logits", found.largest_logit_difference, limits.logits, what)
    yield Verdict("KL", found.mean_kl, limits.kl, "of the next token, trained ‖ exported, mean, in nats")
    num_prompts = len(trained.answers)
    if not num_prompts:
        yield from (skipped(name, "no document has a prompt") for name in ("greedy answers", "stops"))
        return
    equal = num_prompts - found.num_other_answers
    what = f"share that differs: {equal} of {num_prompts} are equal to the token"
    yield Verdict("greedy answers", found.num_other_answers / num_prompts, limits.answers, what)
    ours, theirs = trained.num_stopped, reloaded.behaviour.num_stopped
    what = f"answers that end by themselves: {ours} of {num_prompts} trained, {theirs} exported"
    yield Verdict("stops", abs(ours - theirs) / num_prompts, limits.answers, what)


def _judge_stop_tokens(prepared: PreparedData, reloaded: Reloaded) -> Verdict:
    stops = prepared.template.stop_token_ids
    missing = [token_id for token_id in stops if token_id not in reloaded.stop_token_ids]
    names = " and ".join(prepared.tokenizer.decode([token_id]) for token_id in missing or stops)
    what = f"generation_config.json does not name {names}" if missing else f"answers end at {names}"
    return Verdict("stop tokens", len(missing), 0, what)


def _judge_template(
    prepared: PreparedData, expected: Sequence[Rendering], reloaded: Reloaded, num_passed_over: int
) -> Verdict:
    passed_over = f"; {num_passed_over} documents cannot be told plainly" if num_passed_over else ""
    if not expected:
        return skipped("chat template", f"no document is a conversation{passed_over}")
    wrong, num_seams = differing(expected, reloaded.rendered, prepared.template)
    num_prompts = sum(one.is_prompt for one in expected)
    what = f"{num_prompts} conversations rendered by plain transformers: the ids that were trained"
    what += f", {num_seams} with another seam" if num_seams else ""
    return Verdict(
        "chat template", len(wrong), 0, what + passed_over + (f"; not {wrong[0]}" if wrong else "")
    )


def _bytes_of(size: str) -> int:
    """How many bytes a size names.

    >>> _bytes_of("5GB"), _bytes_of("1.5 mb")
    (5000000000, 1500000)
    """
    unit = size.strip().upper()[-2:]
    try:
        num_bytes = int(float(size.strip()[:-2]) * _UNITS[unit])
    except (KeyError, ValueError, OverflowError):
        num_bytes = 0
    if num_bytes <= 0:
        raise ConfigError(problem("--shard-size", f"{size!r} is no size", "write for instance 500MB or 5GB"))
    return num_bytes
