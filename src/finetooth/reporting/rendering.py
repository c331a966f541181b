"""Templates become pages: everything from outside is escaped, and no page is larger than 2 MB."""

import base64
import functools
import hashlib
from importlib import resources
from typing import Any

import jinja2

from finetooth.base.terminal import make_visible
from finetooth.reporting.numerals import figure, in_words

MAX_BYTES = 2_000_000

_SMALLEST_PART = 1 / 256


def rendered_within(template: str, **values: Any) -> str:
    """The page of a template; its long texts are cut so far that it holds at most 2 MB, and it says so."""
    part = 1.0
    while True:
        page = environment_of("report.css").get_template(template).render(part=part, **values)
        if len(page.encode()) <= MAX_BYTES or part <= _SMALLEST_PART:
            return page
        part /= 2


def brief(text: object, most: float) -> str:
    """A text of which nothing is hidden: what does not print is an escape, what is left out is counted.

    >>> brief("a\\x1bbcdef", 4)
    'a\\\\x1bbc … (3 more characters)'
    """
    whole, most = str(text), int(most)
    if len(whole) <= most:
        return make_visible(whole, keep="\n\t")
    return f"{make_visible(whole[:most], keep=chr(10) + chr(9))} … ({len(whole) - most:,} more characters)"


@functools.cache
def environment_of(style_sheet: str) -> jinja2.Environment:
    """The environment of the templates that share a style sheet, which they hold with its hash."""
    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.FunctionLoader(_text_of),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "visible": lambda text: make_visible(str(text)),
        "brief": brief,
        "number": lambda value: f"{value:,}",
        "in_words": in_words,
        "figure": figure,
    }
    style = _text_of(style_sheet)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment.globals |= {"style": style, "style_hash": f"sha256-{digest}"}
    return environment


def _text_of(name: str) -> str:
    return resources.files("finetooth.reporting").joinpath("templates", name).read_text("utf-8")
