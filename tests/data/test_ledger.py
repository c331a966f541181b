"""Every entry has exactly one fate, in order, whatever the portions, and the ledger counts them."""

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.small_tokenizer import write_small_tokenizer

from finetooth.config.schema import DataConfig
from finetooth.data import rendering
from finetooth.data.formats.reading import Format
from finetooth.data.ledger import Counts, Outcome, count_ledger
from finetooth.data.records import Origin, Record
from finetooth.data.rendering import render_records
from finetooth.data.sources.reading import BadLine, parse_object
from finetooth.data.templates.template import Template, resolve_template
from finetooth.data.tokenizer.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> Template:
    tokenizer = load_tokenizer(write_small_tokenizer(tmp_path_factory.mktemp("tokenizer")))
    return resolve_template("chatml", tokenizer, template_args={}, system=None, is_prompt_response=True)


def record(line: int, prompt: Any = "What is two?", response: Any = "Two.") -> Record:
    return Record(Origin("t.jsonl", line), {"prompt": prompt, "response": response})


def render(entries: list[Record | BadLine], template: Template, **settings: Any) -> list[Outcome]:
    data = DataConfig(train="t.jsonl", **settings)
    portions = render_records(iter(entries), template, format="prompt-response", fields=None, data=data)
    return [outcome for outcomes in portions for outcome in outcomes]


def test_each_entry_is_kept_dropped_or_refused(chatml: Template):
    bad_line = BadLine(Origin("t.jsonl", 3), "NaN is not JSON")
    entries = [record(1), record(2, response=" "), bad_line, record(4, response="four " * 50), record(5)]
    outcomes = render(entries, chatml, max_length=40)
    assert [outcome.entry for outcome in outcomes] == entries
    assert [outcome.state for outcome in outcomes] == ["kept", "refused", "refused", "dropped", "kept"]
    kept, refused, bad, dropped, _ = [outcome.ledger_line("train", "t.jsonl") for outcome in outcomes]
    assert kept == {
        "origin": "t.jsonl:1",
        "source": "t.jsonl",
        "split": "train",
        "state": "kept",
        "reason": None,
        "same_as": None,
        "mask": "proved",
        "left_out": 0,
        "documents": 1,
        "tokens": len(outcomes[0].documents[0].token_ids),
        "targets": outcomes[0].documents[0].num_targets,
    }
    nothing = {"mask": None, "documents": 0, "tokens": 0, "targets": 0}
    assert refused == kept | nothing | {"origin": "t.jsonl:2", "state": "refused", "reason": "empty answer"}
    assert bad == kept | nothing | {"origin": "t.jsonl:3", "state": "refused", "reason": "NaN is not JSON"}
    assert dropped["reason"] == "longer than data.max_length (40 tokens)"
    assert dropped["tokens"] > 40


def test_problems_name_place_fact_and_remedy(chatml: Template):
    refused, dropped = render(
        [record(2, response=""), record(4, response="four " * 50)], chatml, max_length=40
    )
    assert refused.problem() == "t.jsonl:2: empty answer; write an answer or remove the record"
    assert dropped.problem() == (
        "t.jsonl:4: longer than data.max_length (40 tokens); raise data.max_length or shorten the record"
    )


@pytest.mark.parametrize("on_bad_record", ["error", "drop"])
@pytest.mark.parametrize("on_long_document", ["error", "drop"])
def test_the_settings_decide_what_is_an_error(chatml: Template, on_bad_record: str, on_long_document: str):
    entries = [record(1), record(2, response=""), record(4, response="four " * 50)]
    settings = {"on_bad_record": on_bad_record, "on_long_document": on_long_document}
    kept, refused, dropped = render(entries, chatml, max_length=40, **settings)
    assert not kept.is_error
    assert refused.is_error == (on_bad_record == "error")
    assert dropped.is_error == (on_long_document == "error")


def test_a_document_of_just_the_longest_length_is_kept(chatml: Template):
    (outcome,) = render([record(1)], chatml)
    length = len(outcome.documents[0].token_ids)
    assert render([record(1)], chatml, max_length=length)[0].state == "kept"
    assert render([record(1)], chatml, max_length=length - 1)[0].state == "dropped"


def test_portions_play_no_part(chatml: Template, monkeypatch: pytest.MonkeyPatch):
    answers = ["four", "", "Two and two is four. " * 30, "yes", "no"]
    entries = [record(line, response=answer) for line, answer in enumerate(answers * 3, start=1)]
    expected = [outcome.ledger_line("dev", "t") for outcome in render(entries, chatml, max_length=100)]
    assert Counter(line["state"] for line in expected) == {"kept": 9, "refused": 3, "dropped": 3}
    for name, value in (("_PORTION_RECORDS", 1), ("_PORTION_RECORDS", 4), ("_PORTION_CHARACTERS", 100)):
        with monkeypatch.context() as patch:
            patch.setattr(rendering, name, value)
            assert [o.ledger_line("dev", "t") for o in render(entries, chatml, max_length=100)] == expected


def test_no_more_than_a_portion_is_taken_at_once(chatml: Template, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rendering, "_PORTION_CHARACTERS", 100)
    entries = iter([record(line, response="x" * 60) for line in range(1, 11)])
    data = DataConfig(train="t.jsonl")
    portions = render_records(entries, chatml, format="prompt-response", fields=None, data=data)
    first = next(portions)
    assert len(first) == 2
    assert len(list(entries)) == 8


json_scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
json_values = st.recursive(json_scalars, lambda v: st.lists(v) | st.dictionaries(st.text(), v), max_leaves=4)
texts = st.text() | st.sampled_from(["<|im_end|>", "yes", " ", "\U000f0001", "a\n#### 1"])
calls = st.fixed_dictionaries({"function": st.fixed_dictionaries({"name": texts, "arguments": json_values})})
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": texts | json_values},
    optional={"reasoning_content": texts, "tool_calls": st.lists(calls | json_values, max_size=2)},
)
likely_records = st.fixed_dictionaries(
    {},
    optional={
        "messages": st.lists(messages, max_size=4) | json_values,
        "tools": json_values,
        **dict.fromkeys(("prompt", "response", "question", "answer"), texts | json_values),
    },
)


@settings(deadline=None)
@given(
    fields=st.lists(likely_records, min_size=1, max_size=4),
    format=st.sampled_from(["messages", "prompt-response", "gsm8k"]),
    max_length=st.sampled_from([20, 2048]),
)
def test_any_record_has_one_fate_and_the_counts_add_up(
    chatml: Template, tmp_path_factory, fields: list[dict[str, Any]], format: Format, max_length: int
):
    read = [parse_object(json.dumps(each)) for each in fields if is_readable(each)]
    entries = [Record(Origin("t", line), each) for line, each in enumerate(read, start=1)]
    data = DataConfig(train="t", max_length=max_length)
    portions = list(render_records(entries, chatml, format=format, fields=None, data=data))
    outcomes = [outcome for portion in portions for outcome in portion]
    assert [outcome.entry for outcome in outcomes] == entries
    for outcome in outcomes:
        assert (outcome.reason is None) == (outcome.state == "kept")
        assert bool(outcome.documents) == (outcome.state != "refused")
        if outcome.state == "kept":
            assert all(len(d.token_ids) <= max_length and d.num_targets for d in outcome.documents)
    path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    path.write_text("".join(json.dumps(outcome.ledger_line("train", "t")) + "\n" for outcome in outcomes))
    assert count_ledger(path).get("train", Counts()) == counted(outcomes)


def is_readable(fields: dict[str, Any]) -> bool:
    try:
        parse_object(json.dumps(fields))
    except ValueError:
        return False
    return True


def counted(outcomes: list[Outcome]) -> Counts:
    states = Counter(outcome.state for outcome in outcomes)
    documents = [d for outcome in outcomes if outcome.state == "kept" for d in outcome.documents]
    return Counts(
        records=len(outcomes),
        kept=states["kept"],
        dropped=states["dropped"],
        refused=states["refused"],
        documents=len(documents),
        tokens=sum(len(d.token_ids) for d in documents),
        targets=sum(int((d.loss_weights > 0).sum()) for d in documents),
        reasons=Counter(outcome.reason for outcome in outcomes if outcome.reason),
    )
