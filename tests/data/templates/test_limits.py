"""A template that loops or grows without bound is stopped within seconds, before it has filled the memory."""

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import jinja2
import pytest

from finetooth.data.templates.engine import RENDERING_ERRORS, compile_template, render_traced
from finetooth.data.templates.limits import LimitError
from finetooth.data.templates.provenance import Traced

# Each line is a name and a template.
HOSTILE = dict(
    line.split(": ", 1)
    for line in Path(__file__).with_name("hostile_templates.txt").read_text("utf-8").splitlines()
)
# Renders each template in a process of its own, and tells its seconds, its megabytes and its error.
RENDERING = """
import json, os, resource, sys, time
from datetime import datetime
from finetooth.data.templates.provenance import Traced
from finetooth.data.templates.engine import RENDERING_ERRORS, compile_template, render_traced

def render(text):
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        content = Traced("hi", [(2, (0, "content"), 0)])
        given = {"messages": [{"role": "user", "content": content}], "strftime_now": datetime.now().strftime}
        told = f"rendered {len(render_traced(compile_template(text), given))} characters"
    except RENDERING_ERRORS as error:
        told = f"{type(error).__name__}: {error}"
    unit = 1024 if sys.platform == "linux" else 1024**2
    megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) / unit
    return time.process_time(), megabytes, told

for name, text in json.load(sys.stdin).items():
    if os.fork() == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
        seconds = -time.process_time()
        after, megabytes, told = render(text)
        print(json.dumps([name, seconds + after, megabytes, told]), flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="measures memory in forked processes")
def test_hostile_templates_are_stopped_within_seconds_and_within_memory():
    done = subprocess.run(
        [sys.executable, "-c", RENDERING],
        input=json.dumps(HOSTILE),
        capture_output=True,
        text=True,
        check=True,
    )
    told = {name: rest for name, *rest in map(json.loads, done.stdout.splitlines())}
    assert told.keys() == HOSTILE.keys(), "one of them ended its process"
    assert {name: rest for name, rest in told.items() if not rest[2].startswith(STOPPED)} == {}
    assert {name: rest for name, rest in told.items() if rest[0] > 8 or rest[1] > 200} == {}


STOPPED = ("LimitError: it ", "RecursionError: ", "OverflowError: Range too big")


def rendered(text: str, **variables: Any) -> str:
    return str.__str__(render_traced(compile_template(text), variables))


def test_the_text_says_what_was_exceeded():
    loops = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"
    for text, told in {
        loops: "it takes more than 3,000,100 steps in one rendering",
        "{{ 'a' * 10**9 }}": "it makes more than 16,000,256 characters of text in one rendering",
        "{{ 'a'.center(10**9) }}": "it names a width of 1,000,000,000; at most 10,000 is rendered",
        "{{ 10 ** (10 ** 10) }}": "it computes a number of more than 16,384 bits",
    }.items():
        with pytest.raises(LimitError) as caught:
            rendered(text)
        assert str(caught.value) == told


def test_what_is_given_may_be_large():
    # Some templates gather a conversation piece by piece, which copies it again and again.
    gathering = (
        "{% set ns = namespace(text='') %}{% for m in messages %}"
        "{% set ns.text = ns.text ~ m.content | trim %}{% endfor %}{{ ns.text }}"
    )
    content = "x" * 20_000
    messages = [{"content": Traced(content, [(len(content), (i, "content"), 0)])} for i in range(300)]
    assert rendered(gathering, messages=messages) == content * 300
    with pytest.raises(LimitError):
        rendered(gathering.replace("m.content", "'" + "x" * 20_000 + "'"), messages=[1] * 300)


def test_loops_are_stopped_in_threads_too():
    errors: list[str] = []

    def loop() -> None:
        try:
            rendered("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}")
        except RENDERING_ERRORS as error:
            errors.append(type(error).__name__)

    threads = [threading.Thread(target=loop) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == ["LimitError"] * 2


@pytest.mark.parametrize(
    "text",
    [
        "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}",
        "{{ " + "(" * 3_000 + "1" + ")" * 3_000 + " }}",
        "{% if x %}" * 10_000 + "{% endif %}" * 10_000,
        "{% if x %}" * 150 + "{% endif %}" * 150,
        "{% for x in y %}" * 30 + "{% endfor %}" * 30,
        "{{ " + "1+" * 90_000 + "1 }}",
        "{{ " + "not " * 5_000 + "1 }}",
        "{{ x" + "[0]" * 5_000 + " }}",
        "{{ " + "9" * 10_000 + " }}",
        "x" * 1_000_000,
        "{{ x }}" * 20_000,
        "{% set a = 1 %}" * 13_000,
    ],
    ids=range(12),
)
def test_templates_that_are_too_large_to_compile_are_refused(text: str):
    with pytest.raises(jinja2.TemplateSyntaxError):
        compile_template(text)


def test_nothing_large_is_computed_while_a_template_is_compiled():
    compile_template(
        "{{ 10 ** (10 ** 10) }}{{ 'a' * 10 ** 10 }}{{ 'a' | center(10 ** 9) }}{{ '%999999999d' % 1 }}"
    )
