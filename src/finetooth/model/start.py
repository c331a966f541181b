"""What a run begins with: its base, rows for the template's tokens, and an adapter if one is trained."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from finetooth.base.devices import DeviceManager
from finetooth.base.errors import ConfigError, problem
from finetooth.config.schema import SFTConfig
from finetooth.data.templates.template import Template
from finetooth.model.folders import adapter_folder
from finetooth.model.load import load_policy
from finetooth.model.policy import PolicyModel
from finetooth.model.vocabulary import add_rows, find_untrained


@dataclass(frozen=True, slots=True)
class TokensAtStart:
    """Tokens of the template that the base does not know as others, by name.

    added:     to the tokenizer, for the template
    untrained: in the tokenizer, but as if the base never learnt them
    """

    added: tuple[str, ...] = ()
    untrained: tuple[str, ...] = ()


def start_policy(
    config: SFTConfig, template: Template | None, *, devices: DeviceManager
) -> tuple[PolicyModel, TokensAtStart]:
    """The policy before its first step.

    With an adapter, the rows of added tokens are trained beside it, and those that `adapter.train_tokens`
    asks for. Raises ConfigError where base, template and adapter do not fit one another.
    """
    if (folder := adapter_folder(config.model.path)) is not None:
        remedy = "merge it first: finetooth export RUN --to merged"
        raise ConfigError(problem("model.path", f"{folder} is an adapter, not a model", remedy))
    policy = load_policy(
        config.model,
        devices=devices,
        seed=config.training.seed,
        must_pack=config.training.packing is True,
        frozen_for=config.adapter.type,
    )
    tokens = TokensAtStart()
    if template is not None:
        add_rows(policy, template)
        untrained = find_untrained(policy, template) if config.model.path is not None else ()
        tokens = TokensAtStart(template.added_tokens, untrained)
    if config.adapter.type is not None:
        _start_adapter(policy, config, template, tokens)
    return policy, tokens


def resume_policy(
    config: SFTConfig, template: Template | None, checkpoint: Path, *, devices: DeviceManager
) -> PolicyModel:
    """The policy of a checkpoint; an adapter's is put into the base that the config names."""
    if config.adapter.type is None:
        saved = replace(config.model, path=str(checkpoint), from_config=None)
        return load_policy(saved, devices=devices, must_pack=config.training.packing is True)
    policy, _ = start_policy(config, template, devices=devices)
    assert policy.adapter is not None, "an adapter was asked for"
    policy.adapter.load(checkpoint, place="output_dir")
    return policy


def _start_adapter(
    policy: PolicyModel, config: SFTConfig, template: Template | None, tokens: TokensAtStart
) -> None:
    from finetooth.model.adapters import start_adapter  # loads peft, which takes seconds

    assert config.model.path is not None, "the config's validation asks for a trained base"
    folder = Path(config.model.path).expanduser()
    policy.adapter = start_adapter(
        policy.model,
        config.adapter,
        base_name=str(folder.resolve()) if folder.is_dir() else config.model.path,
        token_ids=_trained_tokens(config.adapter.train_tokens, template, tokens),
        seed=config.training.seed,
    )


def _trained_tokens(
    asked: str | Sequence[str], template: Template | None, tokens: TokensAtStart
) -> list[int]:
    """Ids of the tokens whose rows are trained beside an adapter."""
    if template is None:
        return []
    known = template.tokenizer.control_tokens
    names = tokens.untrained if isinstance(asked, str) else tuple(asked)
    problems = [
        problem("adapter.train_tokens", f"{name!r} is no control token of the tokenizer", "leave it out")
        for name in names
        if name not in known
    ]
    if problems:
        raise ConfigError(problems)
    return sorted({known[name] for name in (*tokens.added, *names)})
