"""What a `key=value` setting on the command line may go on with, for the shell that completes it."""

from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from finetooth.config.keys import SECTIONS, SETTINGS, Unknown, find_setting


def completions(word: str) -> list[str]:
    """All that a word which was begun may become: keys, sections, or the values of a key that has few.

    Keys are bare where one setting alone has the name, and dotted behind a section. Of a key whose values
    are many there is none, so that the shell offers files.

    >>> completions("optim"), completions("optimizer=ad")
    (['optimizer='], ['optimizer=adamw', 'optimizer=adamw_8bit'])
    >>> completions("model.")
    ['model.path=', 'model.from_config=', 'model.tokenizer=']
    >>> completions("data.train=")
    []
    """
    name, equals, value = word.partition("=")
    if equals:
        return [f"{name}={choice}" for choice in choices_of(name) if choice.startswith(value)]
    if "." in word:
        return [f"{key}=" for key in SETTINGS if key.startswith(word)]
    names = [key.rpartition(".")[2] for key in SETTINGS]
    alone = [f"{name}=" for name in names if names.count(name) == 1]
    return [offer for offer in (*alone, *(f"{section}." for section in SECTIONS)) if offer.startswith(word)]


def choices_of(name: str) -> list[str]:
    """The values of a setting that has few; none where it has many, or there is no such setting.

    >>> choices_of("adapter.type"), choices_of("learning_rate"), choices_of("lr")
    (['lora', 'dora', 'qlora', 'null'], [], [])
    """
    key = find_setting(name)
    choices = [] if isinstance(key, Unknown) else _choices(SETTINGS[key].kind)
    return [] if choices == ["null"] else choices


def is_setting(name: str) -> bool:
    """Whether a name means one setting.

    >>> is_setting("learning_rate"), is_setting("every")
    (True, False)
    """
    return not isinstance(find_setting(name), Unknown)


def _choices(kind: Any) -> list[str]:
    """The values of a type as they are typed: those of literals, true and false, null."""
    if kind is bool:
        return ["true", "false"]
    if kind is NoneType:
        return ["null"]
    inner = get_args(kind)
    if get_origin(kind) is Literal:
        return [str(value) for value in inner]
    if get_origin(kind) is Annotated:
        return _choices(inner[0])
    is_union = get_origin(kind) not in (list, dict)
    return [choice for part in inner for choice in _choices(part)] if is_union else []
