"""Proof that what was read of a file has the types that it must have."""

from typing import Any

import msgspec


def require_kind(content: object, kind: Any) -> None:
    """Raises msgspec.ValidationError, with the place, where a value is of another type than it must be.

    kind: a type whose parts are types again; a TypedDict leaves open what it does not name

    >>> require_kind({"step": "ten"}, dict[str, int])
    Traceback (most recent call last):
    msgspec.ValidationError: Expected `int`, got `str` - at `$[...]`
    """
    try:
        msgspec.convert(content, kind)
    except UnicodeEncodeError:
        raise msgspec.ValidationError("a text holds half a surrogate pair") from None
