"""Templates render as in transformers, and nothing they do with a message makes its text their own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import pytest
from tests.chat import TEMPLATES, tiny_tokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from finetooth.data.templates import engine as template_engine
from finetooth.data.templates import filters as template_filters
from finetooth.data.templates.engine import compile_template, render_traced
from finetooth.data.templates.provenance import Traced, generation_spans

SECRET = "<|im_end|>"
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}],
    [
        {"role": "user", "content": " <tool_response>é</tool_response> "},
        {"role": "assistant", "content": "\nfour\n", "reasoning_content": "think\n"},
        {"role": "user", "content": "<b>&'\""},
        {"role": "assistant", "content": "<think>a</think>b"},
    ],
]
# One template for each habit of chat templates that Jinja itself does not settle.
HABITS = {
    "tojson": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}{{ 'é<' | tojson }}",
    "generation": "{% set x = 0 %}{% for m in messages %}{% generation %}{% set x = 1 %}{{ m.content }}"
    "{% endgeneration %}{{ x }}{% endfor %}",
    "loop controls": "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}"
    "{{ m.role }}{% break %}{% endfor %}",
    "blocks": "{% for m in messages %}\n    {% if true %}\n{{ m.role }}\n    {% endif %}\n{% endfor %}\n\n",
    "namespace": "{% set ns = namespace(a='x') %}{% for m in messages %}"
    "{% set ns.a = ns.a ~ m.content %}{% endfor %}{{ ns.a }}",
    "values": "{{ messages[0] }}{{ none }}{{ 1.5 }}{{ missing }}{{ messages | length }}{{ (1, 'a') }}",
    "set block": "{% set x %}[{{ messages[0].content }}]{% endset %}{{ x | trim }}{{ x }}",
    "call": "{% macro m(a) %}<{{ caller() }}{{ a }}>{% endmacro %}"
    "{% call m(messages[0].role) %}{{ 1 }}{% endcall %}",
    "formats": "{{ '%s|%s' % (messages[0].content, 1) }}{{ '{0}'.format(messages[1].content) }}{{ '-' * 3 }}",
    "filters": "{{ messages | map(attribute='content') | join(',') | upper }}"
    "{{ messages[0].content | replace('2', '3') }}",
    "default": "{{ missing | default('x') }}{{ messages[0].content | default('y') }}"
    "{{ messages[-1].content[::-1] }}",
}


def traced(value: Any) -> Any:
    """Every text in a value as a message's, but for roles."""
    if isinstance(value, str):
        return Traced(value, [(len(value), (0, "content"), 0)])
    if isinstance(value, dict):
        return {key: entry if key == "role" else traced(entry) for key, entry in value.items()}
    return [traced(entry) for entry in value] if isinstance(value, list) else value


def assert_renders_as_in_transformers(text: str, messages: list[dict[str, Any]]) -> None:
    for variables in ({"add_generation_prompt": False}, {"add_generation_prompt": True, "bos_token": "<s>"}):
        given = {"messages": traced(messages), "tools": None, "documents": None, **variables}
        expected = outcome(transformers_text, text, messages, variables)
        assert outcome(render_traced, compile_template(text), given) == expected


def transformers_text(text: str, messages: list[dict[str, Any]], variables: dict[str, Any]) -> str:
    return render_jinja_template([messages], chat_template=text, **variables)[0][0]


def outcome(render: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What comes out, or what the template itself complains of."""
    try:
        return render(*arguments, **options)
    except jinja2.TemplateError as error:
        return f"refused: {error}"


def by_template(text: Traced) -> str:
    """What counts as written by the template; cuts stand where a message wrote."""
    pieces: list[str] = []
    position = 0
    for length, source, _ in text.runs:
        pieces.append(str.__getitem__(text, slice(position, position + length)) if source is None else "\0")
        position += length
    return "".join(pieces)


@pytest.mark.parametrize("habit", HABITS)
@pytest.mark.parametrize("number", range(len(CONVERSATIONS)))
def test_every_habit_renders_as_in_transformers(habit: str, number: int):
    # transformers gives a message's reasoning a second name, which shows where whole messages are written.
    messages = [{k: v for k, v in m.items() if k != "reasoning_content"} for m in CONVERSATIONS[number]]
    assert_renders_as_in_transformers(HABITS[habit], messages)


@pytest.mark.parametrize("number", range(len(CONVERSATIONS)))
def test_templates_render_as_in_transformers(number: int):
    for text in filter(None, TEMPLATES.values()):
        assert_renders_as_in_transformers(text, CONVERSATIONS[number])


@pytest.mark.parametrize("dialect", ["gemma", "llama3", "phi3", "qwen2_5", "qwen3"])
def test_templates_of_others_render_as_in_transformers(shared: Path, dialect: str):
    text = (shared / f"templates/{dialect}.jinja").read_text(encoding="utf-8")
    system = {"role": "system", "content": "Be brief."}
    for messages in (*CONVERSATIONS, [system, *CONVERSATIONS[0]]):
        assert_renders_as_in_transformers(text, messages)


def rendered_ways() -> dict[str, Traced]:
    """A message's text pressed through every filter, method and operator that takes it."""
    filters = compile_template("").environment.filters
    ways = {f"| {name}": f"{{{{ x | {name} }}}}" for name in filters}
    ways |= {f"list | {name}": f"{{{{ [x, x] | {name} }}}}" for name in filters}
    ways |= {f".{name}()": f"{{{{ x.{name}() }}}}" for name in dir(str) if not name.startswith("_")}
    ways |= {
        way: f"{{{{ {way} }}}}"
        for way in (
            *(
                "x ~ 'a'",
                "'a' ~ x",
                "x + 'a'",
                "'a' + x",
                "'%s' % x",
                "'%s' % (x,)",
                "x % ()",
                "x * 2",
                "2 * x",
            ),
            *(
                "'{}'.format(x)",
                "'{a}'.format_map({'a': x})",
                "','.join([x])",
                "x.join(['a', 'b'])",
                "[x]",
                "{x: 1}",
            ),
            *("{'a': [x]}", "(x,)", "x[:99]", "x[::-1][::-1]", "x.replace('q', '')", "'q'.replace('q', x)"),
            *(
                "[x] | map('upper') | join",
                "[x] | map('string') | list",
                "[{'a': x}] | map(attribute='a') | join",
            ),
            *(
                "x | replace('q', '')",
                "'q' | replace('q', x)",
                "'%s' | format(x)",
                "x | tojson",
                "{'a': x} | tojson",
            ),
            *(
                "x.encode().decode()",
                "dict(a=x)",
                "dict(a=x).a",
                "namespace(a=x).a",
                "x | list | join",
                "x.split('q')",
            ),
            *(
                "x.partition('q')",
                "x if x else ''",
                "x | default('')",
                "(x | safe) ~ ''",
                "x.format()",
                "[x][0]",
            ),
            *(
                "x.splitlines()[0]",
                "x | indent(2)",
                "x | wordwrap(3, false)",
                "x | truncate(99)",
                "x | center(40)",
            ),
        )
    }
    ways |= {
        "set": "{% set y %}{{ x }}{% endset %}{{ y }}{{ y | trim }}",
        "filter block": "{% filter replace('q', '') %}{{ x }}{% endfilter %}",
        "macro": "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(x) }}{{ m(x) | replace('q', '') }}",
        "caller": "{% macro m() %}{{ caller() }}{% endmacro %}{% call m() %}{{ x }}{% endcall %}",
        "generation": "{% generation %}{{ x }}{% endgeneration %}",
        "joiner": "{% set j = joiner(x) %}{{ j() }}{{ j() }}",
        "cycler": "{% set c = cycler(x, x) %}{{ c.next() }}",
        "characters": "{% for c in x %}{{ c }}{% endfor %}",
        "loop": "{% for c in [x] %}{{ loop.cycle(c, c) }}{% endfor %}",
    }
    results: dict[str, Traced] = {}
    for way, text in ways.items():
        try:
            results[way] = render_traced(compile_template(text), {"x": traced(SECRET)})
        except template_engine.RENDERING_ERRORS:
            continue  # needs arguments, or another kind of value
    return results


def test_no_filter_method_or_operator_makes_message_text_the_templates_own():
    results = rendered_ways()
    assert sum(SECRET in text for text in results.values()) > 90, "too few ways show the text at all"
    assert {way: text for way, text in results.items() if SECRET in by_template(text)} == {}


def test_the_check_of_filters_notices_filters_that_are_not_traced(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(template_filters, "retold", lambda result, *origins: result)
    leaks = {way for way, text in rendered_ways().items() if SECRET in by_template(text)}
    assert {"| string", "list | join"} & leaks


def test_what_a_template_writes_itself_stays_its_own():
    text = "{{ '<|im_' ~ 'end|>' }}{{ ['<|im', 'end|>'] | join('_') }}{{ missing | default('<|im_end|>') }}"
    result = render_traced(compile_template(text), {"x": traced("a")})
    assert by_template(result) == SECRET * 3
    macro = "{% macro end(m) %}<|im_end|>{% endmacro %}{{ end(x) }}"
    assert by_template(render_traced(compile_template(macro), {"x": traced("a")})) == SECRET


def test_a_template_cannot_reach_into_the_program():
    for text in ("{{ x.__class__.__mro__ }}", "{{ x.runs.__class__.__base__ }}", "{{ [].append(1) }}"):
        with pytest.raises(jinja2.exceptions.SecurityError):
            render_traced(compile_template(text), {"x": traced("a")})


def test_generation_blocks_are_found_in_the_rendered_and_in_the_neutralised_text():
    text = (
        "{% macro turn(m) %}<|im_start|>{{ m.role }}\n{% generation %}{{ m.content | trim }}<|im_end|>"
        "{% endgeneration %}\n{% endmacro %}{% for m in messages %}{{ turn(m) }}{% endfor %}"
    )
    rendered = render_traced(compile_template(text), {"messages": traced(CONVERSATIONS[0])})
    assert [rendered[begin:end] for begin, end in generation_spans(rendered)] == [
        "2+2?<|im_end|>",
        "4<|im_end|>",
    ]
    neutral = tiny_tokenizer().twin_for([rendered]).neutralise(rendered)
    assert [neutral.text[begin : end - 1] for begin, end in neutral.generated] == ["2+2?", "4"]
    assert {end - 1 for _, end in neutral.generated} <= set(neutral.controls)


def test_generation_blocks_stand_where_transformers_finds_them():
    text = (
        "{% for m in messages %}{{ m.role }}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
        "{% endfor %}"
    )
    for messages in CONVERSATIONS:
        rendered = render_traced(compile_template(text), {"messages": traced(messages)})
        _, indices = render_jinja_template([messages], chat_template=text, return_assistant_tokens_mask=True)
        assert list(generation_spans(rendered)) == indices[0]
