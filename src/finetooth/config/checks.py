"""Checks settings: each value against its type and range, then the values against one another."""

import json
import re
from collections.abc import Callable, Mapping, Set
from functools import cache
from typing import Any, NamedTuple

from pydantic import ConfigDict, TypeAdapter, ValidationError

from finetooth.base.errors import ConfigError, problem
from finetooth.config.figures import SHARES, needs_dev, who_asks_for_best
from finetooth.config.settings import Setting, sections_of, settings_of, values_of
from finetooth.config.sources import SourceConfig
from finetooth.config.wording import describe_choices, show_value

TEMPLATE_NAMES = ("auto", "chatml", "six-token", "headers", "concat")


class Finding(NamedTuple):
    """One problem, and the settings it is about; the place is that of the first one that was given."""

    keys: tuple[str, ...]
    fact: str
    remedy: str


def require_valid(config: object) -> None:
    """Raises ConfigError with every problem of a config that was made in Python."""
    findings = _find_wrong_sections(config) or find_problems(settings_of(type(config)), values_of(config))
    if findings:
        place = type(config).__name__
        raise ConfigError(problem(place, finding.fact, finding.remedy) for finding in findings)


def find_problems(settings: Mapping[str, Setting], values: Mapping[str, Any]) -> list[Finding]:
    """Every problem of the given values, by dotted key; what is absent is taken as unusable.

    A contradiction is looked for only among values that are each allowed.
    """
    findings: list[Finding] = []
    usable: dict[str, Any] = {}
    for key, value in values.items():
        if is_allowed(settings[key].kind, value):
            usable[key] = value
        else:
            findings.append(_wrong_value(key, settings[key].kind, value))
    for needs, find in CONTRADICTIONS:
        if needs <= usable.keys():
            findings.extend(find(usable))
    return [*findings, *_find_unused_adapter(settings, usable)]


def is_allowed(kind: Any, value: object) -> bool:
    """Whether a value has the type and lies in the range; text is never a number, nor is true or false."""
    try:
        _adapter(kind).validate_python(value)
    except ValidationError:
        return False
    return True


def json_schema_of(kind: Any) -> dict[str, Any]:
    """The JSON Schema of one setting's type."""
    return _adapter(kind).json_schema()


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind, config=ConfigDict(strict=True))


def _find_wrong_sections(config: object) -> list[Finding]:
    return [
        Finding(
            (name,),
            f"{name}: found a value of type {type(getattr(config, name)).__name__}",
            f"give a {section.__name__}",
        )
        for name, section in sections_of(type(config)).items()
        if not isinstance(getattr(config, name), section)
    ]


def _wrong_value(key: str, kind: Any, value: object) -> Finding:
    allowed = describe_choices(json_schema_of(kind))
    quotes = " without quotes" if "number" in allowed and _reads_as_number(value) else ""
    return Finding((key,), f"{key}: found {show_value(value)}", f"write {allowed}{quotes}")


def _reads_as_number(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        float(value)
    except ValueError:
        return False
    return True


def _find_model_source(values: Mapping[str, Any]) -> list[Finding]:
    path, from_config = values["model.path"], values["model.from_config"]
    keys = ("model.path", "model.from_config")
    if path is None and from_config is None:
        fact = "model: neither model.path nor model.from_config is given"
        return [Finding(keys, fact, "name a base model's folder as model.path")]
    is_torch_file = path is not None and path.endswith((".pt", ".pth"))
    if path is not None and from_config is not None and not is_torch_file:
        fact = "model: both model.path and model.from_config are given"
        return [Finding(keys, fact, "keep one of them; only a .pt file can need both")]
    if is_torch_file and values["model.tokenizer"] is None:
        fact = "model.path: a .pt file comes without a tokenizer"
        return [Finding(keys, fact, "name a tokenizer's folder as model.tokenizer")]
    if from_config is not None and values["model.tokenizer"] is None:
        fact = "model.from_config: fresh parameters come without a tokenizer"
        return [Finding(keys[::-1], fact, "name a tokenizer's folder as model.tokenizer")]
    return []


def _find_short_rows(values: Mapping[str, Any]) -> list[Finding]:
    row_tokens, max_length = values["training.row_tokens"], values["data.max_length"]
    if row_tokens >= max_length:
        return []
    fact = f"training.row_tokens ({row_tokens}) is below data.max_length ({max_length})"
    remedy = "raise training.row_tokens or lower data.max_length"
    return [Finding(("training.row_tokens", "data.max_length"), fact, remedy)]


def _find_rising_rate(values: Mapping[str, Any]) -> list[Finding]:
    lowest, highest = values["training.min_learning_rate"], values["training.learning_rate"]
    if lowest <= highest:
        return []
    fact = f"training.min_learning_rate ({lowest}) is above training.learning_rate ({highest})"
    remedy = "lower training.min_learning_rate or raise training.learning_rate"
    return [Finding(("training.min_learning_rate", "training.learning_rate"), fact, remedy)]


def _find_broken_warmup(values: Mapping[str, Any]) -> list[Finding]:
    warmup = values["training.warmup_steps"]
    if warmup < 1 or warmup == int(warmup):
        return []
    fact = f"training.warmup_steps: {warmup} is neither a share nor a whole number of steps"
    return [Finding(("training.warmup_steps",), fact, "write a share below 1 or a whole number")]


def _find_unknown_template(values: Mapping[str, Any]) -> list[Finding]:
    template = values["data.template"]
    if template in TEMPLATE_NAMES or template.endswith(".jinja") or template.startswith("own:"):
        return []
    fact = f"data.template: found {show_value(template)}"
    remedy = f"write {', '.join(TEMPLATE_NAMES)} or the path of a .jinja file"
    return [Finding(("data.template",), fact, remedy)]


def _find_unsendable_arguments(values: Mapping[str, Any]) -> list[Finding]:
    try:
        json.dumps(values["data.template_args"], allow_nan=False, ensure_ascii=False).encode()
    except ValueError:
        fact = "data.template_args: holds a number that is infinite or not a number, or broken text"
        return [Finding(("data.template_args",), fact, "write values that JSON can hold")]
    return []


def _find_bad_sources(values: Mapping[str, Any]) -> list[Finding]:
    findings: list[Finding] = []
    for key in ("data.train", "data.dev"):
        if isinstance(values[key], list):
            for index, source in enumerate(values[key]):
                findings.extend(_source_problems(key, f"{key}[{index}]", source))
    return findings


def _source_problems(key: str, place: str, source: Mapping[str, object]) -> list[Finding]:
    settings = settings_of(SourceConfig)
    findings = [
        Finding((key,), f"{place}.{name}: unknown key", f"the keys of a source are {', '.join(settings)}")
        for name in source
        if name not in settings
    ]
    if "path" not in source:
        findings.append(Finding((key,), f"{place}.path: missing", "name the file with the records"))
    for name, value in source.items():
        if name in settings and not is_allowed(settings[name].kind, value):
            wrong = _wrong_value(f"{place}.{name}", settings[name].kind, value)
            findings.append(wrong._replace(keys=(key,)))
    if key == "data.dev" and source.get("repeat", 1) != 1:
        findings.append(Finding((key,), f"{place}.repeat: dev is never repeated", "leave it out"))
    return findings


def _find_unanswerable(values: Mapping[str, Any]) -> list[Finding]:
    if values["evaluation.exact_match"] is None or values["data.dev"] is not None:
        return []
    fact = "evaluation.exact_match: data.dev is null, so there are no records to answer"
    return [Finding(("evaluation.exact_match", "data.dev"), fact, "give data.dev or leave exact_match out")]


def _find_no_best(values: Mapping[str, Any]) -> list[Finding]:
    """What asks for the best evaluation by a figure that is not measured."""
    figure = values["evaluation.best_by"]
    place = who_asks_for_best(
        best_by=figure, patience=values["evaluation.patience"], final=values["checkpoints.final"]
    )
    if place is None:
        return []
    if figure in SHARES and values["evaluation.exact_match"] is None:
        fact = f"{place}: evaluation.exact_match is null, so no {figure} is measured"
        remedy = "give evaluation.exact_match, or write evaluation.best_by: dev_loss"
        return [Finding((place, "evaluation.exact_match"), fact, remedy)]
    if needs_dev(figure) and values["data.dev"] is None:
        fact = f"{place}: data.dev is null, so no {figure} is measured"
        remedy = "give data.dev, or write evaluation.best_by: train_loss"
        return [Finding((place, "data.dev"), fact, remedy)]
    return []


def _find_idle_patience(values: Mapping[str, Any]) -> list[Finding]:
    if values["evaluation.patience"] is None or values["evaluation.every"] > 0:
        return []
    fact = "evaluation.patience: evaluation.every is 0, so nothing is evaluated before the end"
    remedy = "write evaluation.every, in steps, or leave patience out"
    return [Finding(("evaluation.patience", "evaluation.every"), fact, remedy)]


def _find_broken_pattern(values: Mapping[str, Any]) -> list[Finding]:
    kind, _, pattern = (values["evaluation.exact_match"] or "").partition(":")
    if kind != "regex":
        return []
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        fact = f"evaluation.exact_match: {pattern!r} is no pattern: {error}"
        return [Finding(("evaluation.exact_match",), fact, "write a regular expression as Python reads it")]
    return []


def _find_unshared(values: Mapping[str, Any]) -> list[Finding]:
    shard, findings = values["parallel.shard"], list[Finding]()
    if values["parallel.replicate"] is not None and shard != "node":
        fact = f"parallel.replicate: across needs shard: node, and shard is {show_value(shard)}"
        findings.append(Finding(("parallel.replicate",), fact, "write shard: node, or leave replicate out"))
    if values["parallel.sum_gradients"] == "pass" and shard is None:
        fact = "parallel.sum_gradients: pass saves memory only where parameters are shared"
        findings.append(Finding(("parallel.sum_gradients",), fact, "write step, or shard: all"))
    return findings


def _find_unused_adapter(settings: Mapping[str, Setting], values: Mapping[str, Any]) -> list[Finding]:
    """Settings of an adapter that is not there."""
    if values.get("adapter.type", "unusable") is not None:
        return []
    fact, remedy = "adapter.type is null, so nothing reads it", "write adapter.type: lora, or leave it out"
    return [
        Finding((key,), f"{key}: {fact}", remedy)
        for key, value in values.items()
        if key.startswith("adapter.") and value != settings[key].default
    ]


def _find_adapter_without_base(values: Mapping[str, Any]) -> list[Finding]:
    kind, path = values["adapter.type"], values["model.path"]
    if kind is None:
        return []
    if path is None:
        fact = f"adapter.type: {kind} adapts a trained base, and fresh parameters are none"
        return [Finding(("adapter.type",), fact, "name a base model as model.path, or leave adapter out")]
    if path.endswith((".pt", ".pth")):
        fact = f"adapter.type: {kind} needs a base that others can load beside the adapter"
        remedy = f"write the base as a folder first: finetooth export {path} --to folder"
        return [Finding(("adapter.type",), fact, remedy)]
    return []


def _find_shared_four_bits(values: Mapping[str, Any]) -> list[Finding]:
    if values["adapter.type"] != "qlora" or values["parallel.shard"] is None:
        return []
    fact = "parallel.shard: parameters of 4 bits cannot be shared among processes"
    return [Finding(("parallel.shard", "adapter.type"), fact, "leave shard out, or write adapter.type: lora")]


def _find_adapter_in_pure_bf16(values: Mapping[str, Any]) -> list[Finding]:
    if values["adapter.type"] is None or values["training.precision"] != "bf16-pure":
        return []
    fact = "training.precision: bf16-pure trains all parameters, and an adapter's base is frozen"
    return [Finding(("training.precision", "adapter.type"), fact, "write bf16, which keeps the base in bf16")]


def _find_graph_in_parts(values: Mapping[str, Any]) -> list[Finding]:
    recompute = values["training.recompute"]
    if not values["training.compile"] or recompute in ("auto", "nothing", "all"):
        return []
    fact = f"training.recompute: {recompute} with training.compile: a compiled layer is computed again whole"
    remedy = "write auto, nothing or all; compiled layers never keep what is cheap to compute"
    return [Finding(("training.recompute", "training.compile"), fact, remedy)]


def _find_unfit_eight_bit(values: Mapping[str, Any]) -> list[Finding]:
    """What states of 8 bits cannot be had with."""
    if values["training.optimizer"] != "adamw_8bit":
        return []
    reasons = {
        "training.precision": (
            values["training.precision"] == "bf16-pure",
            "it would round bf16 parameters to nearest, which loses small updates",
            "write precision: bf16 or optimizer: adamw",
        ),
        "parallel.shard": (
            values["parallel.shard"] is not None,
            "its blocks cannot be divided among processes",
            "leave shard out or write optimizer: adamw",
        ),
        "parallel.offload_optimizer": (
            values["parallel.offload_optimizer"],
            "its states stay on the device",
            "leave offload_optimizer out or write optimizer: adamw",
        ),
    }
    return [
        Finding(
            ("training.optimizer", key),
            f"training.optimizer: adamw_8bit with {key} ({show_value(values[key])}): {why}",
            remedy,
        )
        for key, (is_given, why, remedy) in reasons.items()
        if is_given
    ]


CONTRADICTIONS: list[tuple[Set[str], Callable[[Mapping[str, Any]], list[Finding]]]] = [
    ({"model.path", "model.from_config", "model.tokenizer"}, _find_model_source),
    ({"training.row_tokens", "data.max_length"}, _find_short_rows),
    ({"training.min_learning_rate", "training.learning_rate"}, _find_rising_rate),
    ({"training.warmup_steps"}, _find_broken_warmup),
    ({"data.template"}, _find_unknown_template),
    ({"data.template_args"}, _find_unsendable_arguments),
    ({"data.train", "data.dev"}, _find_bad_sources),
    ({"evaluation.exact_match", "data.dev"}, _find_unanswerable),
    (
        {
            *("evaluation.best_by", "evaluation.patience", "checkpoints.final"),
            *("evaluation.exact_match", "data.dev"),
        },
        _find_no_best,
    ),
    ({"evaluation.patience", "evaluation.every"}, _find_idle_patience),
    ({"evaluation.exact_match"}, _find_broken_pattern),
    ({"parallel.shard", "parallel.replicate", "parallel.sum_gradients"}, _find_unshared),
    ({"adapter.type", "model.path"}, _find_adapter_without_base),
    ({"adapter.type", "parallel.shard"}, _find_shared_four_bits),
    ({"adapter.type", "training.precision"}, _find_adapter_in_pure_bf16),
    ({"training.recompute", "training.compile"}, _find_graph_in_parts),
    (
        {"training.optimizer", "training.precision", "parallel.shard", "parallel.offload_optimizer"},
        _find_unfit_eight_bit,
    ),
]
