"""A sandbox for chat templates, whose output knows which characters a template wrote and which a message.

It renders what transformers' own environment renders: blocks trimmed, loop controls, `tojson` without HTML
escaping, `raise_exception`, the insides of `{% generation %}` blocks. Text from messages goes in as `Traced`;
every way by which Jinja turns values into text is intercepted, so that it stays traced.

What stands inside `{% generation %}` blocks is marked in the text; `provenance.generation_spans` tells where,
as character spans of the text. The marks are runs without characters, so nothing else sees them.
"""

import functools
import json
from collections.abc import Callable
from typing import Any, NoReturn, cast

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from finetooth.data.provenance import (
    GENERATION_BEGIN,
    GENERATION_END,
    Traced,
    joined,
    retold,
    source_within,
)

_TEXT_HOLDERS = (str, bytes, list, dict)
_MACHINERY = (jinja2.Environment, nodes.EvalContext, Context)

# What else a template's code can raise: it adds text to nothing, divides by zero, calls itself for ever.
RENDERING_ERRORS = (
    jinja2.TemplateError,
    *(ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError),
)


@functools.lru_cache(maxsize=16)
def compile_template(text: str) -> jinja2.Template:
    """Compiles a chat template; raises jinja2.TemplateSyntaxError."""
    return _TracingEnvironment().from_string(text)


def render_traced(template: jinja2.Template, variables: dict[str, Any]) -> Traced:
    """Renders a compiled template; raises one of RENDERING_ERRORS."""
    text = template.render(variables)
    assert isinstance(text, Traced), "the environment joins every output"
    return text


class _TracingCodeGenerator(CodeGenerator):
    """Compiles `a ~ b` to the environment's own joining."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802  (jinja2's name)
        self.write("environment.concat((")
        for part in node.nodes:
            self.write("environment.finalize(")
            self.visit(part, frame)
            self.write("), ")
        self.write("))")


class _GenerationBlocks(Extension):
    """Lets the insides of `{% generation %}…{% endgeneration %}` through, between two marks."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it as a plain set)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        begin, end = (
            nodes.Output([nodes.EnvironmentAttribute(name)])
            for name in ("generation_begin", "generation_end")
        )
        return nodes.Scope([begin, *body, end]).set_lineno(line)


_DICT_ATTRIBUTES = frozenset(dir(dict))


class _TracingEnvironment(ImmutableSandboxedEnvironment):
    code_generator_class = _TracingCodeGenerator
    concat = staticmethod(joined)
    intercepted_binops = frozenset({"%", "*"})
    generation_begin = Traced("", [GENERATION_BEGIN])
    generation_end = Traced("", [GENERATION_END])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_GenerationBlocks, "jinja2.ext.loopcontrols"],
            finalize=_as_text,
        )
        self.filters["tojson"] = _to_json
        self.filters = {name: _traced_filter(function) for name, function in self.filters.items()}
        self.globals["raise_exception"] = _raise_exception  # pyright: ignore[reportUnknownMemberType]

    def getattr(self, obj: Any, attribute: str) -> Any:
        # What the sandbox does for `message.role`, without its many checks: a plain key of a plain dict.
        if type(obj) is dict and attribute in obj and attribute not in _DICT_ATTRIBUTES:
            return cast(dict[str, Any], obj)[attribute]
        return super().getattr(obj, attribute)

    def call(__self, __context: Context, __obj: Any, /, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        result = super().call(__context, __obj, *args, **kwargs)
        owner = getattr(__obj, "__self__", None)
        return retold(result, owner if isinstance(owner, _TEXT_HOLDERS) else None, args, kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        return retold(super().call_binop(context, operator, left, right), left, right)


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    text = str(value)
    return text if source_within(value) is None else Traced(text)


def _traced_filter(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def traced(*arguments: Any, **options: Any) -> Any:
        result = function(*arguments, **options)
        if not isinstance(result, str | list | tuple) or isinstance(result, Traced):
            return result
        return retold(result, [value for value in arguments if not isinstance(value, _MACHINERY)], options)

    return traced


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    options: dict[str, Any] = {"indent": indent, "separators": separators, "sort_keys": sort_keys}
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise_exception(message: Any) -> NoReturn:
    raise jinja2.TemplateError(str(message))
