"""The templates that come with finetooth: their texts, and what each needs of a tokenizer."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from finetooth.base.errors import ConfigError, problem
from finetooth.data.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """What a template of finetooth needs.

    tokens:         control tokens that it writes; a tokenizer that lacks them is given them
    is_plain:       whether it writes no token of its own: a text begins as the tokenizer begins one (with its
                    BOS, if it has one), and the tokenizer's end token ends an answer
    takes_system:   whether it has a place for a system text
    """

    tokens: tuple[str, ...] = ()
    is_plain: bool = False
    takes_system: bool = True


BUILT_IN: Mapping[str, BuiltIn] = {
    "chatml": BuiltIn(tokens=("<|im_start|>", "<|im_end|>")),
    "six-token": BuiltIn(tokens=("<SOU>", "<EOU>", "<SOA>", "<EOA>", "<SOT>", "<EOT>")),
    "headers": BuiltIn(is_plain=True),
    "concat": BuiltIn(is_plain=True, takes_system=False),
}


def text_of(name: str) -> str:
    """The Jinja text of a built-in template."""
    texts = resources.files("finetooth.data.templates") / "builtin_templates"
    return (texts / f"{name}.jinja").read_text("utf-8")


def fit_tokenizer(name: str, tokenizer: Tokenizer) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer with every token that a built-in template writes, and the values of its variables."""
    known = tokenizer.control_tokens
    missing = [token for token in BUILT_IN[name].tokens if token not in known]
    variables = {"leading_text": tokenizer.leading_text} if BUILT_IN[name].is_plain else {}
    return tokenizer.with_tokens(missing) if missing else tokenizer, variables


def check_settings(
    name: str, tokenizer: Tokenizer, *, template_args: Mapping[str, Any], system: str | None
) -> None:
    """Raises ConfigError for what a built-in template has no use for, or lacks."""
    built_in = BUILT_IN[name]
    problems: list[str] = []
    if built_in.is_plain and tokenizer.eos_token is None:
        fact = f"{name} ends an answer with the tokenizer's eos_token, and it has none"
        remedy = "name one in tokenizer_config.json, or use another template"
        problems.append(problem("data.template", fact, remedy))
    remedy = "remove it, or use another template"
    if template_args:
        problems.append(problem("data.template_args", f"{name} has no use for it", remedy))
    if system is not None and not built_in.takes_system:
        problems.append(problem("data.system", f"{name} has no place for it", remedy))
    if problems:
        raise ConfigError(problems)
