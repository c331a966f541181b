"""What can be told from the text of a Jinja template: the variables it reads, and the dates it tells."""

from jinja2 import meta, nodes

from finetooth.data.templates.engine import compile_template

TELLS_TIME = "strftime_now"


class UntellableDateError(ValueError):
    """A template tells the date in a way that only rendering it would show."""


def variables_read(text: str) -> set[str]:
    """The variables that a template reads without setting them; raises jinja2.TemplateSyntaxError."""
    return meta.find_undeclared_variables(_parsed(text))


def date_formats(text: str) -> list[str]:
    """The formats in which a template tells the time, e.g. ["%d %b %Y"]; raises jinja2.TemplateSyntaxError.

    Raises UntellableDateError where a format is computed.
    """
    if TELLS_TIME not in text:
        return []
    tree = _parsed(text)
    formats = [_format_of(call) for call in tree.find_all(nodes.Call) if _tells_time(call.node)]
    tests = tree.find_all(nodes.Test)
    num_asked = sum(test.name in ("defined", "undefined") and _tells_time(test.node) for test in tests)
    num_named = sum(map(_tells_time, tree.find_all(nodes.Name)))
    if num_named != len(formats) + num_asked or None in formats:
        raise UntellableDateError(f"{TELLS_TIME} has a format that is computed")
    return list(dict.fromkeys(known for known in formats if known is not None))


def _format_of(call: nodes.Call) -> str | None:
    """The one text that a call is given, or None where it is given anything else."""
    arguments: list[nodes.Node] = [*call.args, *(keyword.value for keyword in call.kwargs)]
    if len(arguments) != 1 or call.dyn_args is not None or call.dyn_kwargs is not None:
        return None
    [argument] = arguments
    return argument.value if isinstance(argument, nodes.Const) and isinstance(argument.value, str) else None


def _tells_time(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Name) and node.name == TELLS_TIME and node.ctx == "load"


def _parsed(text: str) -> nodes.Template:
    return compile_template(text).environment.parse(text)
