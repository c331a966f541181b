"""The model card of a policy: README.md with what it is, what it was trained on, and how others run it.

Whatever comes from outside (names, reasons, texts of templates) stands in code, where Markdown and HTML leave
it as it is; paths of this machine are left out, of files only the names are told.
"""

import functools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from finetooth.config.schema import SFTConfig
from finetooth.config.settings import values_of
from finetooth.config.sources import sources_of
from finetooth.data.templates.template import Template
from finetooth.reporting.course import is_number
from finetooth.reporting.markdown import Safe, as_yaml, in_block, in_code
from finetooth.reporting.prompt_format import prompt_format
from finetooth.reporting.run_facts import RunFacts
from finetooth.reporting.serving import Form, ollama_modelfile, serving_commands

_REASONS_SHOWN = 5
_FOUR_BITS = """,
    quantization_config=BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    ),
"""
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
_SETTINGS_OF_DATA = ("loss_on", "train_reasoning", "max_length", "on_bad_record", "on_long_document")
_SETTINGS_OF_DATA += ("on_duplicate", "on_near_duplicate", "on_leak", "group_by", "max_records")
_FIGURES = {
    "train_loss": "loss, training records",
    "dev_loss": "loss, held-out records",
    "dev_perplexity": "perplexity, held-out records",
    "exact_match": "held-out answers equal to the record's",
    "stop_rate": "answers that stop by themselves",
}


def model_card(facts: RunFacts, template: Template, *, form: Form = "folder", dtype: str = "fp32") -> str:
    """The card of a run's policy in one of the forms in which it is exported.

    template: as the policy's folder has it
    """
    config, shown = facts.config, prompt_format(template)
    base, noted = base_name(config), facts.environment["template"]
    on_command_line = base if base is not None and _HUB_NAME.fullmatch(base) else "BASE"
    return _card_template().render(
        front_matter=_as_lines(_front_matter(config, form)),
        title=in_code(_file_name(config.output_dir)),
        base=None if base is None else in_code(base),
        form=form,
        dtype=dtype,
        imported=Safe(", BitsAndBytesConfig" if config.adapter.type == "qlora" else ""),
        four_bits=Safe(_FOUR_BITS if config.adapter.type == "qlora" else ""),
        made_by=_made_by(facts.environment["versions"]),
        facts=facts,
        commands=[
            (Safe(title), text) for title, text in serving_commands(form, on_command_line, config.adapter)
        ],
        modelfile=None if form in ("adapter", "pt") else ollama_modelfile(shown),
        template_name=_file_name(noted.get("name", template.name)),
        template_notes=list(_template_notes(config, noted)),
        shown=shown,
        stop_tokens=_listed(shown.stop_tokens, " or "),
        sources=list(_sources(config)),
        splits={split: asdict(count) for split, count in facts.counts.items()},
        reasons=_reasons(facts),
        settings=_as_lines(_settings(config)),
        versions=_listed([f"{name} {version}" for name, version in facts.environment["versions"].items()]),
        chosen=_listed(_chosen(facts)),
        figures=[
            (Safe(label), facts.first.get(name), facts.last[name])
            for name, label in _FIGURES.items()
            if name in facts.last
        ],
    )


def _made_by(versions: Mapping[str, str]) -> Safe:
    """finetooth, and which version where that is known."""
    version = versions.get("finetooth")
    return Safe("finetooth" if version is None else f"finetooth {in_code(version)}")


def _chosen(facts: RunFacts) -> Iterator[str]:
    """By which figure the policy was chosen, where it is not that of the last step."""
    if facts.summary.get("final_step", facts.summary["num_steps"]) != facts.summary["num_steps"]:
        yield facts.config.evaluation.best_by


def base_name(config: SFTConfig) -> str | None:
    """The hub name of the base model or the name of its folder; None where parameters were fresh."""
    if config.model.path is None:
        return None
    return config.model.path if _is_on_hub(config.model.path) else _file_name(config.model.path)


def _front_matter(config: SFTConfig, form: Form) -> dict[str, Any]:
    """What the hub reads; nothing that is not known: no license, and no name that is not the hub's."""
    tags = ["finetooth", "sft", *([config.adapter.type] if config.adapter.type else [])]
    matter: dict[str, Any] = {
        "library_name": {"adapter": "peft", "pt": "finetooth"}.get(form, "transformers"),
        "pipeline_tag": "text-generation",
        "tags": tags,
    }
    if config.model.path is not None and _is_on_hub(config.model.path):
        relation = "adapter" if form == "adapter" else "finetune"
        matter |= {"base_model": config.model.path, "base_model_relation": relation}
    on_hub = [name.removeprefix("hf://") for _, name, _ in _sources(config) if name.startswith("hf://")]
    names = [name for name in dict.fromkeys(on_hub) if _HUB_NAME.fullmatch(name)]
    return matter | ({"datasets": names} if names else {})


def _sources(config: SFTConfig) -> Iterator[tuple[str, str, int]]:
    """Split, name and repeat of each source."""
    named: list[tuple[str, Any]] = [("train", config.data.train)]
    if not isinstance(config.data.dev, float | None):
        named.append(("dev", config.data.dev))
    for split, value in named:
        for source in sources_of(value):
            yield split, _source_name(source.path), source.repeat


def _source_name(path: str) -> str:
    """A dataset's hub name, or the name of a file or folder without the folders above it."""
    return path if path.startswith("hf://") else _file_name(path)


def _template_notes(config: SFTConfig, noted: Mapping[str, Any]) -> Iterator[Safe]:
    """Sentences about what is written into its text."""
    if config.data.system is not None:
        yield Safe("the system text of the training is written into it, for conversations without one")
    if config.data.template_args:
        yield Safe(f"arguments written into it: {in_code(as_yaml(config.data.template_args))}")
    if noted.get("now") is not None:
        yield Safe(f"the time that it tells is that of the training: {in_code(noted['now'])}")
    if noted.get("added_tokens"):
        yield Safe(f"added to the tokenizer: {_listed(noted['added_tokens'])}")


def _listed(texts: Iterable[str], between: str = ", ") -> Safe:
    return Safe(between.join(map(in_code, texts)))


def _file_name(path: str) -> str:
    return Path(path).name or path


def _is_on_hub(name: str) -> bool:
    return _HUB_NAME.fullmatch(name) is not None and not Path(name).expanduser().exists()


def _reasons(facts: RunFacts) -> list[tuple[str, int]]:
    """Why records were not kept, the most frequent reasons first."""
    reasons = Counter[str]()
    for count in facts.counts.values():
        reasons.update(count.reasons)
    shown = reasons.most_common(_REASONS_SHOWN)
    rest = sum(reasons.values()) - sum(number for _, number in shown)
    return shown + ([("other reasons", rest)] if rest else [])


def _settings(config: SFTConfig) -> dict[str, Any]:
    """The settings that decide what was learnt, by dotted key; none of them is a path."""
    chosen = {f"data.{name}" for name in _SETTINGS_OF_DATA}
    sections = ("training.", "adapter.") if config.adapter.type else ("training.",)
    values = values_of(config)
    return {
        key: value
        for key, value in values.items()
        if value is not None and (key in chosen or key.startswith(sections))
    }


def _as_lines(values: Mapping[str, Any]) -> Safe:
    return Safe("\n".join(f"{name}: {as_yaml(value)}" for name, value in values.items()))


def _only_safe(value: object) -> object:
    """Lets nothing into a card that was not escaped."""
    assert isinstance(value, Safe | int | float), f"{value!r} was not escaped"
    return value


@functools.cache
def _card_template() -> jinja2.Template:
    text = resources.files("finetooth.reporting").joinpath("templates/model_card.md.jinja").read_text("utf-8")
    environment = jinja2.Environment(  # noqa: S701 - Markdown, in which `_only_safe` lets pass what is escaped
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_only_safe,
    )
    environment.filters |= {
        "code": in_code,
        "block": in_block,
        "count": lambda number: Safe(f"{number:,}"),
        "figure": lambda value: Safe(f"{value:.4g}" if isinstance(value, float) or is_number(value) else ""),
    }
    return environment.from_string(text)
