"""What a template reads and which dates it tells is seen without rendering it."""

import pytest

from finetooth.data.templates.text import UntellableDateError, date_formats, variables_read


def test_variables_that_are_read():
    text = "{% set a = b %}{{ a }}{% if c is defined %}{{ messages[0].content }}{% endif %}{{ namespace() }}"
    assert variables_read(text) == {"b", "c", "messages"}
    assert variables_read("{% set mood = mood | default('calm') %}{{ mood }}") == {"mood"}


def test_formats_of_dates_each_once_in_their_order():
    text = (
        "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{{ strftime_now(format='%Y') }}"
        "{% macro today() %}{{ strftime_now('%Y') }}{% endmacro %}{% endif %}"
    )
    assert date_formats(text) == ["%d %b %Y", "%Y"]
    assert date_formats("no date {{ messages }}") == []
    assert date_formats("{# strftime_now #}") == []


@pytest.mark.parametrize(
    "text",
    [
        "{{ strftime_now('%' + 'Y') }}",
        "{{ strftime_now(format) }}",
        "{% set tell = strftime_now %}{{ tell('%Y') }}",
        "{{ strftime_now() }}",
        "{{ strftime_now(5) }}",
    ],
)
def test_formats_that_only_rendering_would_show(text: str):
    with pytest.raises(UntellableDateError):
        date_formats(text)
