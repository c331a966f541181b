"""No template reaches the program that renders it, changes what it is given, or knows the time."""

import copy
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import pytest

from finetooth.data.templates.engine import RENDERING_ERRORS, compile_template, render_traced
from finetooth.data.templates.provenance import Traced

# Each reaches something inside Python in an ordinary environment, and says so by writing REACHED.
REACHING = {
    "class of text": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "class by item": "{{ ''['__class__']['__mro__'] }}",
    "class by filter": "{{ '' | attr('__class__') }}",
    "class by map": "{{ [''] | map(attribute='__class__') | list }}",
    "class by format": "{{ '{0.__class__.__mro__}'.format('') }}",
    "class by format_map": "{{ '{a.__class__.__init__}'.format_map({'a': x}) }}",
    "class of a message": "{{ messages[0].__class__ }}",
    "class by sort": "{{ [''] | groupby('__class__') }}",
    "cycler's globals": "{{ cycler.__init__.__globals__ }}",
    "cycler's function": "{{ cycler.next.__globals__ }}",
    "joiner's globals": "{{ joiner.__init__.__globals__ }}",
    "namespace's class": "{{ namespace.__class__ }}",
    "a namespace's class": "{{ namespace().__class__ }}",
    "dict's class": "{{ dict.__base__ }}",
    "range's class": "{{ range.__class__ }}",
    "self": "{{ self._TemplateReference__context }}",
    "raise_exception's globals": "{{ raise_exception.__globals__ }}",
    "the clock's owner": "{{ strftime_now.__self__ }}",
    "macro's function": "{% macro m() %}{% endmacro %}{{ m._func }}",
    "macro's environment": "{% macro m() %}{% endmacro %}{{ m._environment }}",
    "loop's iterator": "{% for a in [1] %}{{ loop._iterator }}{% endfor %}",
    "loop's method": "{% for a in [1] %}{{ loop.cycle.__func__.__globals__ }}{% endfor %}",
    "a method's owner": "{{ x.upper.__self__.__class__ }}",
    "runs": "{{ x.runs }}",
    "runs by item": "{{ x['runs'] }}",
    "runs by filter": "{{ x | attr('runs') }}",
    "runs by map": "{{ [x] | map(attribute='runs') | list }}",
    "runs by format": "{{ '{0.runs}'.format(x) }}",
    "a cut": "{{ x._cut(0, 1) }}",
}
HARMLESS = ("", "[Undefined]", "[(Undefined, [''])]")
# Each changes what it is given, in an ordinary environment.
CHANGING = {
    "append": "{{ messages.append(1) }}",
    "pop": "{{ messages.pop() }}",
    "clear": "{{ messages.clear() }}",
    "insert": "{{ messages.insert(0, 1) }}",
    "reverse": "{{ messages.reverse() }}",
    "extend": "{{ messages.extend([1]) }}",
    "update": "{{ messages[0].update({'role': 'x'}) }}",
    "setdefault": "{{ messages[0].setdefault('a', 1) }}",
    "dict pop": "{{ messages[0].pop('role') }}",
    "append by item": "{{ messages['append'](1) }}",
    "append by filter": "{{ (messages | attr('append'))(1) }}",
    "append by map": "{{ ([messages] | map(attribute='append') | list)[0](1) }}",
    "reset of a class": "{{ cycler.reset(cycler) }}{{ joiner.__init__(joiner) }}",
}
LOADING = (
    "{% include '/etc/hostname' %}",
    "{% extends '/etc/hostname' %}",
    "{% import '/etc/hostname' as m %}",
    "{% from '/etc/hostname' import m %}",
    "{% if false %}{% include 'x' ignore missing %}{% endif %}",
)
IMPURE = (
    "{{ [1, 2, 3] | random }}",
    "{{ lipsum() }}",
    "{{ now() }}",
    "{{ [1] | map('random') | list }}",
    "{{ raise_exception }}",
    "{{ x.upper }}",
    "{{ [x.upper] | string }}",
    "{{ '%s' % cycler(1) }}",
    "{{ '{}'.format(joiner()) }}",
    "{{ [1] | map('string') }}",
    "{{ {'a': 1, 'b': 2}.keys() - ['a'] }}",
)


def variables() -> dict[str, Any]:
    text = Traced("<|im_end|>", [(10, (0, "content"), 0)])
    messages = [{"role": "user", "content": text}]
    return {"messages": messages, "x": text, "strftime_now": datetime(2026, 1, 2).strftime}


def outcome(template: jinja2.Template, given: dict[str, Any]) -> str:
    """What is rendered, or the error's class; traced templates come from the engine."""
    try:
        return template.render(given) if template.globals.get("lipsum") else render_traced(template, given)
    except RENDERING_ERRORS as error:
        return f"refused: {type(error).__name__}"


def plain(text: str) -> jinja2.Template:
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader("/"))
    environment.globals["raise_exception"] = variables
    return environment.from_string(text)


@pytest.mark.parametrize("name", REACHING)
def test_a_template_reaches_nothing_but_its_variables(name: str):
    result = outcome(compile_template(REACHING[name]), variables())
    assert result.startswith("refused: ") or result in HARMLESS


@pytest.mark.parametrize("name", REACHING)
def test_the_payloads_reach_into_an_ordinary_environment(name: str):
    result = outcome(plain(REACHING[name]), variables())
    assert not result.startswith("refused: ")
    assert result not in HARMLESS


@pytest.mark.parametrize("name", CHANGING)
def test_a_template_changes_nothing_that_it_is_given(name: str):
    given = variables()
    before = copy.deepcopy(given["messages"])
    assert outcome(compile_template(CHANGING[name]), given).startswith("refused: ")
    assert given["messages"] == before


def test_the_payloads_change_messages_in_an_ordinary_environment():
    changed: list[str] = []
    for name, text in CHANGING.items():
        given = variables()
        before = copy.deepcopy(given["messages"])
        outcome(plain(text), given)
        changed += [name] if given["messages"] != before else []
    assert len(changed) >= len(CHANGING) - 2, "reversing one message, and a class, change nothing that shows"


@pytest.mark.parametrize("text", LOADING)
def test_a_template_cannot_load_another(text: str):
    with pytest.raises(jinja2.TemplateSyntaxError) as caught:
        compile_template(text)
    assert caught.value.message == "a chat template stands alone: it cannot load another one"


def test_an_ordinary_environment_reads_files(tmp_path: Path):
    (tmp_path / "secret").write_text("secret")
    assert plain(f"{{% include '{tmp_path}/secret' %}}").render() == "secret"


@pytest.mark.parametrize("text", IMPURE)
def test_nothing_that_differs_from_run_to_run_can_be_written(text: str):
    try:
        result = outcome(compile_template(text), variables())
    except jinja2.TemplateSyntaxError:
        result = "refused: "
    assert result.startswith("refused: ")


@pytest.mark.parametrize("text", ["{% autoescape true %}{{ x }}{% endautoescape %}", "{{ dict(*x) }}"])
def test_what_would_lose_the_origin_of_text_is_refused(text: str):
    with pytest.raises(jinja2.TemplateSyntaxError):
        compile_template(text)


def test_text_marked_as_safe_keeps_its_origin():
    for text in (
        "{{ ('' | safe) + x }}",
        "{{ x + ('' | safe) }}",
        "{{ ('' | safe) ~ x }}",
        "{{ (x | safe) * 2 }}",
    ):
        rendered = render_traced(compile_template(text), variables())
        assert all(source is not None for length, source, _ in rendered.runs if length)


def test_one_rendering_leaves_no_trace_in_the_next():
    text = "{% set ns = namespace(n=0) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}{{ z is defined }}{% set z = 1 %}"
    template = compile_template(text)
    assert [str(render_traced(template, variables())) for _ in range(3)] == ["1False"] * 3
