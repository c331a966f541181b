"""The verb `compare`: two models side by side, by their answers and by what they make of a run's records."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from finetooth.assets.general_prompts import GENERAL_PROMPTS
from finetooth.base.devices import DeviceManager
from finetooth.base.errors import ConfigError, all_at_once, problem
from finetooth.base.terminal import progress
from finetooth.batching.packing import layout_of
from finetooth.config.load import load_config
from finetooth.config.schema import SFTConfig
from finetooth.data.preparation import PreparedData
from finetooth.data.records import Message
from finetooth.data.templates.template import Template, encode_prompt
from finetooth.evaluation.document_losses import DocumentLosses, measure_documents
from finetooth.evaluation.exact_match import Answered
from finetooth.evaluation.fitting import have_same_ids
from finetooth.evaluation.forgetting import answer_losses, mean_moved
from finetooth.evaluation.generation import Generation
from finetooth.evaluation.judging import answer_dev, free_memory, make_ready, prepare_for
from finetooth.evaluation.record_changes import changed_records, turned_answers
from finetooth.evaluation.speaker import Reply, Speaker, load_target, template_of
from finetooth.evaluation.targets import PLACE, Target, find_targets, settings_file
from finetooth.model.policy import PolicyModel
from finetooth.reporting.comparison_tables import answers_table, changes_tables, turned_table


@dataclass(frozen=True, slots=True)
class _Questions:
    """What both models are asked: prompts, general prompts, and the records of a run if there are any."""

    prompts: Sequence[str]
    general: Sequence[str]
    max_new_tokens: int
    records: tuple[PreparedData, SFTConfig] | None
    devices: DeviceManager
    console: Console


@dataclass(frozen=True, slots=True)
class _Heard:
    """What one of them makes of it.

    replies, general: its answers to the prompts and, as ids and as text, to the general ones
    general_losses:   what it gives the first one's answers to the general ones, per token
    losses, answered: of the dev records; None where none were asked for
    """

    replies: list[Reply]
    general: list[Generation]
    general_replies: list[Reply]
    general_losses: list[float | None]
    losses: DocumentLosses | None
    answered: dict[int, Answered] | None


def compare(
    first: str,
    second: str,
    *,
    prompts: Sequence[str] = (),
    general: bool = False,
    records: int | None = None,
    config: SFTConfig | None = None,
    max_new_tokens: int = 256,
    console: Console | None = None,
) -> dict[str, Any]:
    """Compares two models; returns what was found and prints it.

    first, second: run directories, checkpoints of runs or model folders
    prompts: both answer them
    general: both answer a fixed set of general prompts as well, and it is told how far the second has moved:
             the mean cross-entropy per token that it gives the first one's answers, minus the first one's own
    records: the dev records are measured under both, and so many that got better, and worse, are named
    config:  whose records these are; default: those of the first run of the two
    Raises ConfigError, before anything is loaded, for models that are absent or cannot be compared so.
    """
    console = console or Console(quiet=True)
    names, targets = (first, second), find_targets([first, second])
    if records is not None and config is None:
        config = load_config(settings_file(names))
    templates = all_at_once(template_of, targets) if prompts or general else []
    _require_askable(templates, [*prompts, *(GENERAL_PROMPTS if general else ())], general=general)
    questions = _Questions(
        prompts=prompts,
        general=GENERAL_PROMPTS if general else (),
        max_new_tokens=max_new_tokens,
        records=None if config is None else (_prepare(targets, config, console), config),
        devices=DeviceManager()
        if config is None
        else DeviceManager(config.training.device, config.training.precision),
        console=console,
    )
    heard: list[_Heard] = []
    for number, target in enumerate(targets):
        free_memory(questions.devices)
        template = templates[number] if templates else None
        heard.append(_hear(target, template, questions, first=heard[0] if heard else None))
    result: dict[str, Any] = {"first": first, "second": second, "answers": _answers(names, questions, heard)}
    if general:
        result["general"] = _general(names, questions, heard)
    if records is not None:
        result["records"] = _records(names, questions, heard, most=records)
    return result


def _require_askable(templates: Sequence[Template], prompts: Sequence[str], *, general: bool) -> None:
    """Raises ConfigError or DataError where models cannot be asked or answers not be compared."""
    for template in templates:
        for prompt in prompts:
            encode_prompt(template, [Message("user", prompt)])
    if general and not have_same_ids(*(template.tokenizer for template in templates)):
        fact = "--general: the two have different tokenizers, so answers of one say nothing to the other"
        raise ConfigError(problem(PLACE, fact, "leave it out, or name models of one tokenizer"))


def _prepare(targets: Sequence[Target], config: SFTConfig, console: Console) -> PreparedData:
    if config.data.dev is None:
        fact = "--records: data.dev is null, so there are no dev records"
        raise ConfigError(problem(PLACE, fact, "name another --config"))
    return prepare_for(targets, config, console=console)


def _hear(
    target: Target, template: Template | None, questions: _Questions, *, first: _Heard | None
) -> _Heard:
    """first: what the first model made of it; None of the first itself."""
    policy = load_target(target, devices=questions.devices)
    replies: list[Reply] = []
    general: list[Generation] = []
    general_replies: list[Reply] = []
    losses: list[float | None] = []
    if template is not None:
        speaker = Speaker(policy, template, questions.devices)
        longest = questions.max_new_tokens
        replies = speaker.reply(
            [[Message("user", text)] for text in questions.prompts], max_new_tokens=longest
        )
        asked = [encode_prompt(template, [Message("user", text)]) for text in questions.general]
        general = speaker.go_on(asked, max_new_tokens=longest)
        general_replies = [speaker.in_words(one) for one in general]
        answers = general if first is None else first.general
        losses = answer_losses(speaker, asked, [one.token_ids for one in answers])
    measured, answered = (None, None) if questions.records is None else _examine(policy, target, questions)
    return _Heard(replies, general, general_replies, losses, measured, answered)


def _examine(
    policy: PolicyModel, target: Target, questions: _Questions
) -> tuple[DocumentLosses, dict[int, Answered] | None]:
    """The losses of the dev records and, where answers are compared, the answers."""
    assert questions.records is not None, "asked for only with records"
    prepared, config = questions.records
    dev = prepared.dev
    assert dev is not None, "settings without dev records are refused"
    make_ready(policy, target, prepared)
    with progress("measuring", questions.console) as advance:
        losses = measure_documents(
            policy,
            dev,
            numbers=range(dev.num_documents),
            layout=layout_of(config.training, can_pack=policy.why_not_packed is None),
            devices=questions.devices,
            on_progress=lambda num: advance(num, dev.num_documents),
        )
    if config.evaluation.exact_match is None:
        return losses, None
    with progress("answering", questions.console) as advance:
        return losses, answer_dev(policy, prepared, config, devices=questions.devices, on_progress=advance)


def _answers(names: tuple[str, str], questions: _Questions, heard: Sequence[_Heard]) -> list[dict[str, Any]]:
    one, other = heard
    if questions.prompts:
        questions.console.print(answers_table(names, questions.prompts, one.replies, other.replies))
    return [
        {"prompt": prompt, "first": _as_dict(first), "second": _as_dict(second)}
        for prompt, first, second in zip(questions.prompts, one.replies, other.replies, strict=True)
    ]


def _general(names: tuple[str, str], questions: _Questions, heard: Sequence[_Heard]) -> dict[str, Any]:
    one, other = heard
    moved = [
        None if own is None or given is None else given - own
        for own, given in zip(one.general_losses, other.general_losses, strict=True)
    ]
    mean, replies = mean_moved(moved), (one.general_replies, other.general_replies)
    questions.console.print(answers_table(names, questions.general, *replies, moved=moved, mean=mean))
    return {
        "mean_moved": mean,
        "answers": [
            {"prompt": prompt, "first": _as_dict(first), "second": _as_dict(second), "moved": each}
            for prompt, first, second, each in zip(questions.general, *replies, moved, strict=True)
        ],
    }


def _records(
    names: tuple[str, str], questions: _Questions, heard: Sequence[_Heard], *, most: int
) -> dict[str, Any]:
    one, other = heard
    assert one.losses is not None, "records were asked for"
    assert other.losses is not None, "of both"
    changes = changed_records(one.losses, other.losses, most=most)
    for table in changes_tables(names, changes):
        questions.console.print(table)
    found = changes.as_dict()
    if one.answered is not None and other.answered is not None:
        turned = turned_answers(one.answered, other.answered)
        questions.console.print(turned_table(turned, most=most))
        found["answers"] = turned.as_dict()
    return found


def _as_dict(reply: Reply) -> dict[str, Any]:
    return {"text": reply.text, "stopped": reply.stopped}
