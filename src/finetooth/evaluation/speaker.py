"""A policy that can be talked to: parameters, tokenizer and template of a run or a model folder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from finetooth.base.devices import DeviceManager
from finetooth.base.errors import ConfigError, FinetoothError, problem
from finetooth.base.files import check_folder
from finetooth.config.load import load_config
from finetooth.config.schema import ModelConfig
from finetooth.data.masks.reasoning import fitted
from finetooth.data.preparation import prepare_data
from finetooth.data.records import Message
from finetooth.data.templates.template import Template, encode_prompt, resolve_template
from finetooth.data.tokenizer.tokenizer import load_tokenizer
from finetooth.evaluation.generation import Generation, generate, generate_one
from finetooth.evaluation.targets import PLACE, Target, find_target, template_notes, told_time
from finetooth.evaluation.text_pieces import TextPieces
from finetooth.model.legacy.reading import is_legacy
from finetooth.model.load import load_policy
from finetooth.model.policy import PolicyModel
from finetooth.model.vocabulary import add_rows


@dataclass(frozen=True, slots=True)
class Reply:
    """What a policy wrote, and whether it stopped by itself."""

    text: str
    stopped: bool


@dataclass(frozen=True, slots=True)
class Speaker:
    """Answers conversations greedily, rendered as in training."""

    policy: PolicyModel
    template: Template
    devices: DeviceManager

    def reply(self, conversations: Sequence[Sequence[Message]], *, max_new_tokens: int) -> list[Reply]:
        """One answer per conversation; each ends with a user message."""
        prompts = [self.encode(messages) for messages in conversations]
        return [self.in_words(one) for one in self.go_on(prompts, max_new_tokens=max_new_tokens)]

    def go_on(self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int) -> list[Generation]:
        """What it writes behind prompts of this template, as token ids."""
        return generate(
            self.policy,
            prompts,
            max_new_tokens=max_new_tokens,
            stop_token_ids=self.template.stop_token_ids,
            devices=self.devices,
        )

    def say(
        self, messages: Sequence[Message], *, max_new_tokens: int, on_text: Callable[[str], object]
    ) -> Reply:
        """The answer to one conversation, as `reply` gives it; told piece by piece while it is written.

        on_text: called with each piece, which cuts no character and never holds the stop token
        """
        pieces = TextPieces(self.template.tokenizer.decode)
        generation = generate_one(
            self.policy,
            self.encode(messages),
            max_new_tokens=max_new_tokens,
            stop_token_ids=self.template.stop_token_ids,
            devices=self.devices,
            on_token=lambda token_id: on_text(pieces.add(token_id)),
        )
        on_text(pieces.rest())
        return Reply(pieces.text, generation.stopped)

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The ids that the policy is given; no text of a message becomes a control token.

        Raises DataError where the template refuses the messages.
        """
        return encode_prompt(self.template, fitted(tuple(messages), self.template))

    @property
    def positions(self) -> int | None:
        """How many tokens prompt and answer may have together; None where nothing limits them."""
        return getattr(self.policy.model.config.get_text_config(), "max_position_embeddings", None)

    def in_words(self, generation: Generation) -> Reply:
        """The text of what it wrote."""
        return Reply(self.template.tokenizer.decode(list(generation.token_ids)), generation.stopped)


def open_speaker(name: str, *, devices: DeviceManager | None = None) -> Speaker:
    """Loads a run's policy, a checkpoint of a run, or a base model, with its template.

    Raises what `find_target`, `template_of` and `load_target` raise.
    """
    target, devices = find_target(name), devices or DeviceManager()
    template = template_of(target)
    return Speaker(load_target(target, devices=devices), template, devices)


def open_base(name: str, speaker: Speaker) -> Speaker:
    """The base that a run began with, spoken to in the run's template: the policy before its first step.

    name, speaker: the run, and what `open_speaker` made of it. Of a policy with an adapter, the base is the
    same model with the adapter switched off; otherwise the model that the run's config.yaml names is loaded.
    Raises ConfigError where no base is known, or where it is absent.
    """
    if speaker.policy.adapter is not None:
        return replace(speaker, policy=speaker.policy.frozen_copy())
    run = find_target(name).run
    if run is None:
        fact = f"{name} is no run directory, so that its base is not known"
        raise ConfigError(problem("/base", fact, "talk to the run, or use finetooth compare"))
    model = load_config(run / "config.yaml").model
    if model.path is None:
        raise ConfigError(problem("/base", f"{name} began with fresh parameters", "it has no base"))
    base = load_policy(model, devices=speaker.devices)
    known = load_tokenizer(model.tokenizer or model.path).control_tokens
    added = [name for name in speaker.template.tokenizer.control_tokens if name not in known]
    add_rows(base, replace(speaker.template, added_tokens=tuple(added)))
    return replace(speaker, policy=base)


def template_of(target: Target) -> Template:
    """The folder's own template, which for a run is that of its training.

    Without one, the bare prompt is continued. Raises ConfigError for a `.pt` file, which has no tokenizer.
    """
    name = tokenizer_name(target)
    if name is None:
        command = f"finetooth export {target.name} --to folder --out FOLDER --tokenizer TOKENIZER"
        remedy = f"write it as a folder with one: {command}"
        raise ConfigError(problem(PLACE, f"{target.name} comes without a tokenizer", remedy))
    if target.run is not None and not (target.run / "final").is_dir():
        config = load_config(target.run / "config.yaml")
        return prepare_data(config, now=told_time(target.run)).template
    tokenizer = load_tokenizer(name, place=PLACE)
    return resolve_template("auto" if tokenizer.chat_template is not None else "concat", tokenizer)


def load_target(target: Target, *, devices: DeviceManager) -> PolicyModel:
    """The policy of a target; one of a run on a base in 4 bits, where it was trained on one.

    Raises ConfigError for a model that is absent or incomplete, FinetoothError for a damaged checkpoint.
    """
    if target.is_checkpoint and (damages := check_folder(Path(target.path))):
        remedy = "restore it, or name another checkpoint"
        raise FinetoothError(problem(target.path, f"damaged: {damage}", remedy) for damage in damages)
    adapter = None if target.run is None else load_config(target.run / "config.yaml").adapter.type
    return load_policy(ModelConfig(path=target.path), devices=devices, place=PLACE, frozen_for=adapter)


def knows_tokens(target: Target, template: Template) -> bool:
    """Whether a run's policy or a model has its own rows for the tokens that the template added.

    A base model's tokenizer lacks them; that of a policy which was trained with the template has them.
    """
    added = set(template.added_tokens)
    if target.is_checkpoint and target.run is not None:
        added -= set(template_notes(target.run).get("added_tokens", ()))
    if not added:
        return True
    name = tokenizer_name(target)
    return name is not None and load_tokenizer(name, place=PLACE).control_tokens.keys() >= added


def tokenizer_name(target: Target) -> str | None:
    """The folder or hub name of a target's tokenizer; None of a `.pt` file, which comes without one."""
    if not target.is_checkpoint or target.run is None:
        return None if is_legacy(target.path) and Path(target.path).is_file() else target.path
    if (target.run / "final").is_dir():
        return str(target.run / "final")
    model = load_config(target.run / "config.yaml").model
    return model.tokenizer or model.path
