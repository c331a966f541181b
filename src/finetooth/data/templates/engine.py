"""A sandbox for chat templates, whose output knows which characters a template wrote and which a message.

It renders what transformers' own environment renders: blocks trimmed, loop controls, `tojson` without HTML
escaping, `raise_exception`, the insides of `{% generation %}` blocks. Text from messages goes in as `Traced`;
every way by which Jinja turns values into text is intercepted, so that it stays traced.

What stands inside `{% generation %}` blocks is marked in the text; `provenance.generation_spans` tells where,
as character spans of the text. The marks are runs without characters, so nothing else sees them.

A template reaches the variables it is given, some public methods of text and containers, and nothing else. It
is a pure function of them: there is no clock, no chance, no other template, and nothing that it could change.
What it may compute is bounded in `data/templates/limits.py`.
"""

import functools
import operator
from collections.abc import Iterable
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter, safe_range
from jinja2.utils import Cycler, Joiner, Namespace, missing

from finetooth.data.templates.code import (
    DICT_ATTRIBUTES,
    TEXT_METHODS,
    CountingCodeGenerator,
    public_attributes,
    require_compilable,
)
from finetooth.data.templates.filters import bounded_filters, bounded_tests, call_method
from finetooth.data.templates.limits import (
    CHARACTERS_PER_PLACE,
    Budget,
    admitted,
    current,
    gathered,
    kind_of,
    require_field,
    require_format,
    require_power,
    require_repeated,
    require_sum,
    require_text,
    require_width,
    weigh,
    weighed,
)
from finetooth.data.templates.provenance import (
    GENERATION_BEGIN,
    GENERATION_END,
    Traced,
    joined,
    retold,
    source_within,
)

MAX_TEMPLATE_CHARACTERS = 200_000

# What else a template's code can raise: it adds text to nothing, divides by zero, calls itself for ever.
RENDERING_ERRORS = (
    jinja2.TemplateError,
    *(ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError),
)

_TEXTS = {str, Traced}
_VIEWS = (kind_of({}.keys()), kind_of({}.values()), kind_of({}.items()))
_CONTAINERS: set[Any] = {list, tuple, dict, *_VIEWS}
_TEXT_HOLDERS = (str, list, dict)


@functools.lru_cache(maxsize=16)
def compile_template(text: str) -> jinja2.Template:
    """Compiles a chat template; raises jinja2.TemplateSyntaxError."""
    if len(text) > MAX_TEMPLATE_CHARACTERS:
        fact = f"the template has {len(text):,} characters; at most {MAX_TEMPLATE_CHARACTERS:,} are compiled"
        raise jinja2.TemplateSyntaxError(fact, 1)
    environment = _TracingEnvironment()
    try:
        require_compilable(environment.parse(text))
        template = environment.from_string(text)
    except (RecursionError, MemoryError, SyntaxError, ValueError, OverflowError) as error:
        fact = f"the template is nested too deeply, or cannot be compiled: {error}"
        raise jinja2.TemplateSyntaxError(fact, 1) from error
    template.globals = dict(
        template.globals
    )  # a chain of tables, of which each rendering would make a new one
    return template


def render_traced(template: jinja2.Template, variables: dict[str, Any]) -> Traced:
    """Renders a compiled template; raises one of RENDERING_ERRORS."""
    token = current.set(Budget(variables))
    try:
        return _joined(template.root_render_func(template.new_context(variables)))
    finally:
        current.reset(token)


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


def _joined(pieces: Iterable[str]) -> Traced:
    listed = list(pieces)
    num_runs = sum([len(piece.runs) for piece in listed if type(piece) is Traced])
    current.get().make(sum(map(len, listed)) + CHARACTERS_PER_PLACE * num_runs)
    return joined(listed)


def _spent(steps: int) -> bool:
    current.get().spend(steps)
    return True


# All attributes that a template can reach, by the type that has them.
_ATTRIBUTES: dict[type, frozenset[str]] = {
    str: TEXT_METHODS | {"format", "format_map"},
    list: public_attributes(list),
    tuple: public_attributes(tuple) | {"grouper", "list"},  # the last two are those of `groupby`
    dict: public_attributes(dict, "fromkeys"),
    int: public_attributes(int, "from_bytes", "to_bytes"),
    float: public_attributes(float, "fromhex"),
    range: frozenset({"start", "stop", "step"}),
    LoopContext: frozenset(name for name in dir(LoopContext) if not name.startswith("_")),
    Macro: frozenset({"name", "arguments", "catch_kwargs", "catch_varargs", "caller"}),
    Cycler: frozenset({"next", "current", "reset"}),
    jinja2.runtime.BlockReference: frozenset({"super", "name"}),
}
# Those of the types that templates ask most, which need no further check.
_PLAIN_ATTRIBUTES = {
    str: TEXT_METHODS,
    Traced: TEXT_METHODS,
    dict: _ATTRIBUTES[dict],
    LoopContext: _ATTRIBUTES[LoopContext],
}


class _TracingEnvironment(ImmutableSandboxedEnvironment):
    code_generator_class = CountingCodeGenerator
    concat = staticmethod(_joined)
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "**", "%"})
    generation_begin = Traced("", [GENERATION_BEGIN])
    generation_end = Traced("", [GENERATION_END])
    budget = staticmethod(current.get)
    spent = staticmethod(_spent)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_GenerationBlocks, "jinja2.ext.loopcontrols"],
            finalize=_as_text,
        )
        self.filters = bounded_filters(self.filters)
        self.tests = bounded_tests(self.tests)
        functions = (_range, _dict, _namespace, _cycler, _joiner, _raise_exception)
        self.globals = {function.__name__.removeprefix("_"): function for function in functions}

    # -- What compiled templates call, besides jinja2's own

    def added(self, parts: tuple[Any, ...]) -> Any:
        """`a + b + …`, from left to right."""
        kinds = set(map(type, parts))
        if kinds <= _TEXTS:
            if Traced in kinds:
                return _joined(parts)
            return "".join(admitted(part) for part in parts)
        result = parts[0]
        for part in parts[1:]:
            require_sum(result, part)
            result = retold(admitted(operator.add(result, part)), result, part)
        return result

    def held(self, num_places: int, value: Any) -> Any:
        """A list, a tuple or a dict that the template writes out."""
        current.get().make(CHARACTERS_PER_PLACE * (1 + num_places))
        return value

    def iterated(self, value: Any) -> Any:
        """A value whose parts a loop takes one by one."""
        if isinstance(value, str):
            current.get().make(CHARACTERS_PER_PLACE * len(value))
        return value

    def cut(self, value: Any, place: slice) -> Any:
        """`value[a:b]`."""
        if type(value) is Traced:
            current.get().make(CHARACTERS_PER_PLACE * len(value.runs))
        return admitted(value[place])

    def compared(self, value: Any) -> Any:
        """A value that is about to be compared."""
        kind = kind_of(value)
        if kind in _TEXTS:
            current.get().spend(1 + (len(value) >> 6))
        elif kind in _CONTAINERS:
            weigh(value)
        return value

    def searched(self, value: Any) -> Any:
        """A value in which another is about to be sought."""
        kind = kind_of(value)
        return value if kind is dict else self.compared(value)

    def key(self, value: Any) -> Any:
        """A value that is about to be hashed."""
        kind = kind_of(value)
        if kind is tuple:
            weigh(value)
        return value

    # -- What jinja2 calls

    def getattr(self, obj: Any, attribute: str) -> Any:
        kind = kind_of(obj)
        if kind is dict and attribute not in DICT_ATTRIBUTES:
            return self.field(obj, attribute)
        if attribute in _PLAIN_ATTRIBUTES.get(kind, ()):
            return getattr(obj, attribute)
        if kind is Namespace and not attribute.startswith("_"):
            value = getattr(obj, attribute, missing)
            return self.undefined(obj=obj, name=attribute) if value is missing else value
        if isinstance(obj, str) and not hasattr(str, attribute):
            return self.undefined(obj=obj, name=attribute)  # what Traced has, and text has not
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        self.key(argument)
        if type(obj) is Traced:
            current.get().make(CHARACTERS_PER_PLACE + len(obj.runs))
        if isinstance(argument, str) and not isinstance(obj, dict):
            return self._item_or_attribute(obj, argument)
        return super().getitem(obj, argument)

    def _item_or_attribute(self, obj: Any, name: str) -> Any:
        try:
            return obj[name]
        except (TypeError, LookupError):
            return self.getattr(obj, str.__str__(name))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if not super().is_safe_attribute(obj, attr, value):
            return False
        known = next((_ATTRIBUTES[kind] for kind in type(obj).__mro__ if kind in _ATTRIBUTES), None)
        return attr in known if known is not None else isinstance(obj, Namespace)

    def wrap_str_format(self, value: Any) -> Any:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        text, is_map = value.__self__, value.__name__ == "format_map"

        def bounded(*args: Any, **kwargs: Any) -> Any:
            if is_map:
                (kwargs,), args = args, ()
            return retold(_Formatter(self).vformat(text, args, kwargs), text, args, kwargs)

        return bounded

    def call(__self, __context: Context, __obj: Any, /, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        if type(__obj) is Macro:
            kwargs.pop("_loop_vars", None)
            kwargs.pop("_block_vars", None)
            return __obj(*args, **kwargs)
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, _TEXT_HOLDERS):
            kwargs.pop("_loop_vars", None)
            kwargs.pop("_block_vars", None)
            return call_method(__obj, owner, args, kwargs)
        if isinstance(owner, datetime) and args:
            require_width(len(args[0]))  # of which each character may become hundreds
        current.get().spend()
        if __obj is _namespace:
            kwargs.pop("_loop_vars", None)
            kwargs.pop("_block_vars", None)
            return _namespace(*args, **kwargs)
        if isinstance(owner, LoopContext):
            weigh(args)  # `changed` compares
        if isinstance(__obj, LoopContext):
            args = tuple(map(__self.iterated, args))
        result = admitted(super().call(__context, __obj, *args, **kwargs))
        return retold(result, *weighed(args, kwargs)) if isinstance(result, str) else result

    def field(self, obj: Any, name: str) -> Any:
        """`obj.name` where a dict has no attribute of that name."""
        kind = kind_of(obj)
        if kind is not dict:
            return self.getattr(obj, name)
        value = obj.get(name, missing)
        return self.undefined(obj=obj, name=name) if value is missing else value

    def call_method(self, context: Context, value: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        """`value.name(…)` where text has a method of that name."""
        if type(value) in _TEXTS:
            return call_method(getattr(value, name), value, args, kwargs)
        return self.call(context, self.getattr(value, name), *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if type(left) is type(right) is int and operator in ("-", "%", "//"):
            return self.binop_table[operator](left, right)  # no larger than the two
        if operator == "*":
            require_repeated(left, right)
        elif operator == "**":
            require_power(left, right)
        elif operator == "%" and isinstance(left, str):
            require_format(left, right)
        return retold(admitted(super().call_binop(context, operator, left, right)), left, right)


class _Formatter(SandboxedFormatter):
    def convert_field(self, value: Any, conversion: Any) -> Any:
        require_text(value)
        return super().convert_field(value, conversion)

    def format_field(self, value: Any, format_spec: str) -> Any:
        require_field(value, format_spec)
        return admitted(super().format_field(value, format_spec))


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    require_text(value)
    text = admitted(str(admitted(value)))
    return text if source_within(value) is None else Traced(text)


def _range(*bounds: int) -> range:
    return safe_range(*bounds)


def _dict(*entries: Any, **named: Any) -> dict[Any, Any]:
    return dict(*map(_listed, entries), **named)


def _namespace(*entries: Any, **named: Any) -> Namespace:
    current.get().make(CHARACTERS_PER_PLACE * (8 + len(named)))
    return Namespace(*map(_listed, entries), **named)


def _listed(entries: Any) -> Any:
    listed = gathered(entries)
    weigh(listed)
    current.get().make(CHARACTERS_PER_PLACE * (len(listed) if hasattr(listed, "__len__") else 1))
    return listed


def _cycler(*items: Any) -> Cycler:
    current.get().make(CHARACTERS_PER_PLACE * (8 + len(items)))
    return Cycler(*items)


def _joiner(sep: str = ", ") -> Joiner:
    current.get().make(CHARACTERS_PER_PLACE * 8)
    return Joiner(sep)


def _raise_exception(message: Any) -> NoReturn:
    raise jinja2.TemplateError(_as_text(message))
