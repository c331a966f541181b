"""A policy that can be talked to: parameters, tokenizer and template of a run or a model folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetooth.base.devices import DeviceManager
from finetooth.base.errors import ConfigError, problem
from finetooth.config.load import load_config
from finetooth.config.schema import ModelConfig
from finetooth.data.records import Message
from finetooth.data.templates.template import Template, encode_prompt, resolve_template
from finetooth.data.tokenizer.tokenizer import load_tokenizer
from finetooth.evaluation.generation import generate
from finetooth.model.legacy.reading import is_legacy
from finetooth.model.load import load_policy
from finetooth.model.policy import PolicyModel


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
        generations = generate(
            self.policy,
            [encode_prompt(self.template, messages) for messages in conversations],
            max_new_tokens=max_new_tokens,
            stop_token_ids=self.template.stop_token_ids,
            devices=self.devices,
        )
        decode = self.template.tokenizer.decode
        return [Reply(decode(list(one.token_ids)), one.stopped) for one in generations]


def model_folder(target: str) -> str:
    """The folder of a run's policy, or the target itself where it is no run directory.

    Raises ConfigError for a run that has not finished.
    """
    path = Path(target)
    if not (path / "config.yaml").is_file():
        return target
    if not (path / "final").is_dir():
        fact = f"{path} has no final/"
        raise ConfigError(problem("command line", fact, "finish the run with train --resume"))
    return str(path / "final")


def load_target(target: str, *, devices: DeviceManager) -> PolicyModel:
    """The policy of a run, on a base in 4 bits where it was trained on one, or the model of a folder."""
    settings = Path(target) / "config.yaml"
    adapter = load_config(settings).adapter.type if settings.is_file() else None
    model = ModelConfig(path=model_folder(target))
    return load_policy(model, devices=devices, place="command line", frozen_for=adapter)


def knows_tokens(target: str, template: Template) -> bool:
    """Whether a run's policy or a model has its own rows for the tokens that the template added.

    A base model's tokenizer lacks them; that of a policy which was trained with the template has them.
    """
    if not template.added_tokens:
        return True
    folder = model_folder(target)
    if Path(folder).is_file():  # a .pt file, which holds no tokenizer
        return False
    tokenizer = load_tokenizer(folder, place="command line")
    return tokenizer.control_tokens.keys() >= set(template.added_tokens)


def open_speaker(target: str, *, devices: DeviceManager | None = None) -> Speaker:
    """Loads a run's policy or a base model.

    The template is the folder's own, which for a run is that of its training; a folder without one
    continues the bare prompt. Raises ConfigError for a `.pt` file, which has no tokenizer.
    """
    devices = devices or DeviceManager()
    folder = model_folder(target)
    if Path(folder).is_file() and is_legacy(folder):
        command = f"finetooth export {target} --to folder --out FOLDER --tokenizer TOKENIZER"
        remedy = f"write it as a folder with one: {command}"
        raise ConfigError(problem("command line", f"{target} comes without a tokenizer", remedy))
    tokenizer = load_tokenizer(folder, place="command line")
    name = "auto" if tokenizer.chat_template is not None else "concat"
    template = resolve_template(name, tokenizer)
    return Speaker(load_target(target, devices=devices), template, devices)
