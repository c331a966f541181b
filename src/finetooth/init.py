"""`finetooth init`: records and a base model become a commented run.yaml; shows what it would train."""

import dataclasses
import importlib.util
import itertools
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from finetooth.base.errors import ConfigError, DataError, problem
from finetooth.base.files import problems_of_place, write_atomically
from finetooth.base.machine import this_machine
from finetooth.base.terminal import make_visible, print_line, print_text
from finetooth.batching.order import epoch_order
from finetooth.config.commented import commented_yaml
from finetooth.config.keys import find_setting
from finetooth.config.load import config_of, read_config
from finetooth.config.schema import CheckpointsConfig, EvaluationConfig, SFTConfig
from finetooth.config.settings import values_of
from finetooth.data.formats.reading import Format, to_conversation
from finetooth.data.ledger import Entry
from finetooth.data.preparation import PreparedData, prepare_data
from finetooth.data.records import Conversation, Document, Record
from finetooth.data.sources.inputs import Source, examine_sources
from finetooth.data.templates.text import variables_read
from finetooth.model.shape import ModelShape, in_short, shape_of
from finetooth.reporting.excerpts import excerpt_data, excerpt_view
from finetooth.reporting.record_report import ledger_entries
from finetooth.training.first_settings import (
    GIVEN,
    Choice,
    Preset,
    Situation,
    choose_preset,
    choose_settings,
    describe_memory,
)

THINKING = "enable_thinking"
"""By this name, templates can be told whether to ask for reasoning (Qwen3, SmolLM3, GLM, …)."""

_RECORDS_LOOKED_AT = 20_000
_NUM_SAMPLES = 3
# Longer than any document, so that all of them are measured before a limit is chosen.
_NO_LIMIT = 1 << 24
# In the place of settings that are chosen later, so that none of them contradicts one that is given.
_UNDECIDED = {
    "data.max_length": 2,
    "training.row_tokens": _NO_LIMIT,
    "training.learning_rate": 1.0,
    "training.min_learning_rate": 0.0,
}
_TEMPLATES = {
    "own": "the tokenizer's own",
    "chatml": "chatml, as the tokenizer has no template of its own",
    "concat": "prompt, then answer; chatml would make a chat",
}


@dataclass(frozen=True, slots=True)
class _Findings:
    """What was found out about the data.

    num_records, num_documents: how many there are in all, as far as the records that were looked at tell
    unusable:   why records cannot be used, in a few words; empty where all can
    num_leaks:  training records that also stand in dev
    sources:    those of the training records
    """

    prepared: PreparedData
    format: Format
    num_records: int
    num_documents: int
    unusable: str
    num_leaks: int
    sources: Sequence[Source]


def init(
    data: str,
    model: str,
    *,
    preset: Preset | None = None,
    out: Path = Path("run.yaml"),
    force: bool = False,
    overrides: Sequence[str] = (),
    console: Console,
) -> dict[str, Any]:
    """Looks at records and model, shows what would be trained, and writes a run.yaml that can be trained.

    data, model: what data.train, and model.path or (a config.json) model.from_config name
    preset:      what is trained; default: the first of full, lora and qlora that memory holds
    overrides:   settings that are given, as `key=value`; the others are chosen around them
    Returns the same as one JSON object. No parameters are loaded. Raises ConfigError for `out` that stands
    there already (unless `force`) and for mistakes in model and settings, DataError as `prepare_data` does.
    """
    config, shape = _settle(_given(data, model, preset), overrides, preset=preset, out=out, force=force)
    settled = _settled(config, overrides)
    findings = _look_at(config, console)
    if "data.template_args" not in settled and _is_thinking_for_nothing(findings, config):
        without = dataclasses.replace(config.data, template_args={THINKING: False})
        config = dataclasses.replace(config, data=without)
        findings = _look_at(config, console)
    situation = _situation(config, shape, findings, settled, preset)
    settings = {choice.key: choice for choice in _choices(config, situation, findings)}
    memory = describe_memory(situation, settings["training.row_tokens"].value)
    text = _run_file(settings, f"This machine: {situation.machine.describe()}.", f"{memory}.")
    read_config(text, str(out))
    samples = _samples(findings.prepared, config)
    _show(findings, samples, text, console)
    write_atomically(out, text.encode())
    following = f"finetooth train {shlex.quote(str(out))}"
    print_line(console, f"Written: {out}. Next:")
    print_line(console, f"  {following}")
    return {
        "out": str(out),
        "preset": situation.preset,
        "format": findings.format,
        "template": findings.prepared.template_name,
        "records": findings.num_records,
        "parameters": shape.num_parameters,
        "memory": memory,
        "settings": {key: choice.value for key, choice in settings.items()},
        "reasons": {key: choice.reason for key, choice in settings.items()},
        "samples": [excerpt_data(document, findings.prepared.tokenizer) for document in samples],
        "next": following,
    }


def _given(data: str, model: str, preset: Preset | None) -> dict[str, object]:
    """The settings that the arguments name."""
    source = "model.from_config" if model.endswith(".json") else "model.path"
    adapter = {} if preset in (None, "full") else {"adapter.type": preset}
    return {source: model, "data.train": data, "output_dir": _free_folder(data), **adapter, **_UNDECIDED}


def _free_folder(data: str) -> str:
    """A run directory named after the data, which nothing stands at yet."""
    name = re.sub(r"[^\w-]+", "-", Path(data).stem).strip("-") or "first"
    names = (f"runs/{name}{ending}" for ending in ("", *(f"-{number}" for number in range(2, 1000))))
    return next(folder for folder in names if not Path(folder).exists())


def _settle(
    given: dict[str, object], overrides: Sequence[str], *, preset: Preset | None, out: Path, force: bool
) -> tuple[SFTConfig, ModelShape]:
    """The settings so far, and the model's shape. Raises ConfigError with all that is wrong with either."""
    problems = _problems_of_out(out, force)
    if preset == "qlora" and not _has_four_bits():
        problems.append(problem("--preset", "qlora needs bitsandbytes", "pip install 'finetooth[qlora]'"))
    try:
        config = config_of(given, overrides)
        if preset is not None and config.adapter.type != given.get("adapter.type"):
            fact = f"{preset}, and adapter.type={config.adapter.type} is another"
            problems.append(problem("--preset", fact, "give one of them"))
        shape = shape_of(config.model)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from None
    if problems:
        raise ConfigError(problems)
    return config, shape


def _problems_of_out(out: Path, force: bool) -> list[str]:
    if problems := problems_of_place(out, option="--out"):
        return problems
    if out.exists() and not force:
        fact = f"{out} is there already"
        return [problem("--out", fact, "name another file, or add --force to replace it")]
    return []


def _settled(config: SFTConfig, overrides: Sequence[str]) -> dict[str, object]:
    """The settings that were given as key=value; `config_of` has found all of them."""
    keys = {find_setting(override.partition("=")[0].strip()) for override in overrides}
    return {key: value for key, value in values_of(config).items() if key in keys}


def _look_at(config: SFTConfig, console: Console) -> _Findings:
    """Prepares records without a limit of length; what cannot be used is left out, and counted."""
    most = min(config.data.max_records or _RECORDS_LOOKED_AT, _RECORDS_LOOKED_AT)
    data = dataclasses.replace(
        config.data,
        dev=None if isinstance(config.data.dev, float) else config.data.dev,
        max_length=_NO_LIMIT,
        max_records=most,
    )
    training = dataclasses.replace(config.training, row_tokens=_NO_LIMIT)
    strict = dataclasses.replace(
        config,
        data=data,
        training=training,
        evaluation=EvaluationConfig(),  # what is asked of evaluations may need dev records
        checkpoints=CheckpointsConfig(),
    )
    dropping = dataclasses.replace(data, on_bad_record="drop", on_leak="drop")
    lenient = dataclasses.replace(strict, data=dropping)
    try:
        prepared = prepare_data(lenient, console=console)
    except DataError:
        prepare_data(strict, console=console)  # tells of each record why it cannot be used
        raise
    counts = prepared.counts["train"]
    sources = [source for source in examine_sources(config.data) if source.split == "train"]
    num_records = counts.records
    if prepared.has_more_records:
        num_records = sum(1 for source in sources for _ in source.entries(prepared.template))
    leaks = [number for reason, number in counts.reasons.items() if reason.startswith("leak:")]
    return _Findings(
        prepared,
        sources[0].format,
        num_records,
        num_documents=max(1, round(len(prepared.train_documents.lengths) * num_records / counts.records)),
        unusable=_unusable(prepared),
        num_leaks=sum(leaks),
        sources=sources,
    )


def _is_thinking_for_nothing(findings: _Findings, config: SFTConfig) -> bool:
    """Whether the template can be told not to ask for reasoning, and no record has any.

    Else the policy would learn what the template writes in the place of absent reasoning (an empty
    <think></think>), after prompts that ask for some.
    """
    template = findings.prepared.template
    if findings.format in ("text", "tokens") or THINKING not in variables_read(template.jinja_text):
        return False
    entries = (
        (source, entry)
        for source in findings.sources
        for entry in itertools.islice(source.entries(template), _RECORDS_LOOKED_AT)
    )
    return not any(_has_reasoning(source, entry, config.data.input_join) for source, entry in entries)


def _has_reasoning(source: Source, entry: Entry, input_join: str) -> bool:
    if not isinstance(entry, Record):
        return False
    fields = source.settings.fields
    read = to_conversation(entry, format=source.format, fields=fields, input_join=input_join)
    return isinstance(read, Conversation) and any(each.reasoning_content for each in read.messages)


def _unusable(prepared: PreparedData) -> str:
    num_refused = sum(count.refused for count in prepared.counts.values())
    if not num_refused:
        return ""
    first = next(entry for entry in ledger_entries(prepared) if entry.line["state"] == "refused")
    records = "1 record" if num_refused == 1 else f"{num_refused:,} records"
    return f"{records} cannot be used; first {first.origin}"


def _situation(
    config: SFTConfig,
    shape: ModelShape,
    findings: _Findings,
    settled: Mapping[str, object],
    preset: Preset | None,
) -> Situation:
    lengths, machine = findings.prepared.train.lengths, this_machine()
    if preset is None and "adapter.type" in settled:
        named: dict[str | None, Preset] = {None: "full", "qlora": "qlora"}
        preset = named.get(config.adapter.type, "lora")
    return Situation(
        shape,
        machine,
        preset or choose_preset(shape, machine, lengths, _possible(config, shape)),
        lengths,
        findings.num_documents,
        findings.format == "text",
        settled,
    )


def _possible(config: SFTConfig, shape: ModelShape) -> tuple[Preset, ...]:
    """What can be trained of a model: an adapter needs a base that others can load beside it."""
    if shape.is_fresh or str(config.model.path).endswith((".pt", ".pth")):
        return ("full",)
    return ("full", "lora", "qlora") if _has_four_bits() else ("full", "lora")


def _has_four_bits() -> bool:
    return importlib.util.find_spec("bitsandbytes") is not None


def _choices(config: SFTConfig, situation: Situation, findings: _Findings) -> list[Choice]:
    """Every setting that is written: what describes model and data, what was chosen, and what was given."""
    described = [choice for choice in _described(config, situation, findings) if choice.value is not None]
    chosen = choose_settings(situation)
    dev = next(choice.value for choice in chosen if choice.key == "data.dev")
    if findings.format == "gsm8k" and dev is not None:
        reason = "results of answers to dev records are compared"
        chosen.append(Choice("evaluation.exact_match", "answer-tag", reason))
    chosen.append(Choice("output_dir", config.output_dir, "all that the run leaves behind"))
    choices = {choice.key: choice for choice in (*described, *chosen)}
    for key, value in situation.settled.items():
        choices[key] = Choice(key, value, choices[key].reason if key in choices else GIVEN)
    return list(choices.values())


def _described(config: SFTConfig, situation: Situation, findings: _Findings) -> list[Choice]:
    """What model and data are, and what must be said of them; null where nothing must."""
    shape, template = situation.shape, findings.prepared.template_name
    size = f"{in_short(shape.num_parameters)} parameters"
    size += f", documents of up to {shape.positions:,} tokens" if shape.positions else ""
    on_bad_record = "drop" if findings.unusable else None
    on_leak = "drop" if findings.num_leaks else None
    arguments = None if "data.template_args" in situation.settled else config.data.template_args
    return [
        Choice("model.path", config.model.path, size),
        Choice("model.from_config", config.model.from_config, f"fresh parameters: {size}"),
        Choice("data.train", config.data.train, f"{findings.num_records:,} records"),
        Choice("data.format", findings.format, "recognised by the fields of the records"),
        Choice("data.template", config.data.template, _TEMPLATES.get(template, "")),
        Choice("data.template_args", arguments or None, "no record has reasoning; prompts in use say so too"),
        Choice("data.on_bad_record", on_bad_record, findings.unusable),
        Choice("data.on_leak", on_leak, f"{findings.num_leaks:,} records stand in dev too"),
    ]


def _run_file(settings: Mapping[str, Choice], *facts: str) -> str:
    written = {key: (choice.value, choice.reason) for key, choice in settings.items()}
    return commented_yaml(written, heading=("Written by finetooth init; every value can be changed.", *facts))


def _samples(prepared: PreparedData, config: SFTConfig) -> list[Document]:
    """A few documents at random, the same ones at every call."""
    order = epoch_order(prepared.train.num_documents, seed=config.training.seed, epoch=0)
    return [prepared.train.document(number) for number in order[:_NUM_SAMPLES].tolist()]


def _show(findings: _Findings, samples: Sequence[Document], text: str, console: Console) -> None:
    prepared = findings.prepared
    counts, lengths = prepared.counts["train"], prepared.statistics["train"]["lengths"]
    print_line(console, f"{findings.num_records:,} records, read as {findings.format}")
    if counts.records < findings.num_records:
        print_line(console, f"what follows is of the first {counts.records:,}")
    for reason, number in counts.reasons.items():
        print_line(console, f"left out: {number:,} × {reason}")
    print_line(
        console,
        f"tokens per document: median {lengths['median']:,.0f}, 95 % up to {lengths['p95']:,}, "
        f"longest {lengths['max']:,}",
    )
    print_line(console, f"targets: {counts.targets / counts.tokens:.0%} of the tokens, here ⟦in brackets⟧")
    for document in samples:
        heading = f"{document.origin}: {len(document.token_ids):,} tokens, {document.num_targets:,} targets"
        console.print()
        console.print(Text(make_visible(heading), "bold"), soft_wrap=True)
        view = excerpt_view(document, prepared.tokenizer)
        console.print(view, soft_wrap=True, end="" if view.plain.endswith("\n") else "\n")
    console.print()
    print_text(console, text)
