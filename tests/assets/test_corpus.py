"""What the demo claims is true: nothing held out is taught, and only the base has read about it."""

from collections import Counter
from importlib.resources import files
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from finetooth.assets.corpus import (
    WORDINGS,
    Fact,
    conversations,
    exam,
    load_facts,
    names_in,
    pretraining_texts,
    split_facts,
)

MEGABYTE = 1_000_000
BASE = Path(str(files("finetooth.assets") / "base"))
CONTROL_BASE = Path(__file__).parent / "control_base"
FACTS = load_facts()
TAUGHT, HELD_OUT = split_facts(FACTS)


def spoken(facts: tuple[Fact, ...]) -> str:
    """Everything said in the conversations about these facts, one message per line."""
    return "\n".join(
        message["content"] for talk in conversations(facts, seed=0) for message in talk["messages"]
    )


def test_tables_have_no_empty_cell_no_stray_space_and_only_ascii() -> None:
    for fact in FACTS:
        for cell in (fact.entity, fact.answer):
            assert cell == cell.strip() != "", fact
            assert cell.isascii(), fact


def test_no_entity_is_listed_twice_in_its_table() -> None:
    assert [
        pair for pair, number in Counter((fact.kind, fact.entity) for fact in FACTS).items() if number > 1
    ] == []


def test_every_table_is_read() -> None:
    tables = {file.name.removesuffix(".tsv") for file in (files("finetooth.assets") / "facts").iterdir()}
    assert tables == set(WORDINGS) == {fact.kind for fact in FACTS}


def test_a_fact_is_put_into_words() -> None:
    peru = next(fact for fact in FACTS if fact.entity == "Peru")
    assert peru == Fact(
        "country",
        "Peru",
        "Lima",
        "What is the capital of Peru?",
        "The capital of Peru is Lima.",
        "The capital of Peru is",
    )


def test_replies_restate_the_entity_after_a_space_and_end_in_the_answer() -> None:
    for fact in FACTS:
        assert f" {fact.entity} " in fact.cloze
        assert f" {fact.entity}" in fact.question
        assert fact.sentence == f"{fact.cloze} {fact.answer}."


def test_the_split_is_a_division_and_depends_on_the_seed_alone() -> None:
    assert split_facts(FACTS) == (TAUGHT, HELD_OUT)
    assert split_facts(FACTS, seed=1) != (TAUGHT, HELD_OUT)
    assert sorted(map(repr, TAUGHT + HELD_OUT)) == sorted(map(repr, FACTS))
    assert {fact.kind for fact in HELD_OUT} == set(WORDINGS)
    assert 0.25 < len(HELD_OUT) / len(FACTS) < 0.30


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_conversation_names_a_held_out_entity_or_answer(seed: int) -> None:
    taught, held_out = split_facts(FACTS, seed)
    assert names_in(spoken(taught), held_out) == []


def test_the_leak_check_finds_a_held_out_name_in_other_words_and_case() -> None:
    (midway,) = (fact for fact in FACTS if fact.entity == "Midway")
    (scream,) = (fact for fact in FACTS if fact.entity == "The Scream")
    assert names_in("They stopped midway.", [midway]) == ["Midway"]
    assert names_in("Edvard Munch heard a scream.", [midway, scream]) == ["The Scream", "Edvard Munch"]
    assert names_in("Midways and 11942 screamers", [midway, scream]) == []


def test_a_held_out_fact_among_the_taught_would_be_found() -> None:
    assert names_in(spoken((*TAUGHT, HELD_OUT[0])), HELD_OUT) == [HELD_OUT[0].entity, HELD_OUT[0].answer]


def test_conversations_ask_in_every_phrasing_and_the_exam_in_one_of_them() -> None:
    talks = conversations(TAUGHT, seed=0)
    asked = {talk["messages"][0]["content"]: talk["messages"][1]["content"] for talk in talks}
    assert len(asked) == len(talks) == sum(len(WORDINGS[fact.kind].questions) for fact in TAUGHT)
    assert all(asked[item["question"]] == item["answer"] for item in exam(TAUGHT))
    assert conversations(TAUGHT, seed=0) == talks != conversations(TAUGHT, seed=1)


def test_the_base_has_read_every_reply_of_the_exam_but_never_after_its_question() -> None:
    texts = pretraining_texts(FACTS, seed=0)
    assert {item["answer"] for item in exam(FACTS)} <= set(texts)
    assert all(line.endswith("?") for text in texts if "?" in text for line in text.splitlines())
    assert texts == pretraining_texts(FACTS, seed=0) != pretraining_texts(FACTS, seed=1)


def test_the_control_has_read_no_held_out_name() -> None:
    assert names_in("\n".join(pretraining_texts(TAUGHT, seed=0)), HELD_OUT) == []


@pytest.mark.parametrize("folder", [BASE, CONTROL_BASE], ids=["base", "control"])
def test_models_are_small_and_have_no_chat_template(folder: Path) -> None:
    names = {file.name for file in folder.iterdir()}
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    } == names
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 8 * MEGABYTE
    assert "chat_template" not in (folder / "tokenizer_config.json").read_text(encoding="utf-8")


def test_the_control_has_the_same_tokenizer_and_shape() -> None:
    for name in ("config.json", "tokenizer.json"):
        assert (BASE / name).read_bytes() == (CONTROL_BASE / name).read_bytes()


@pytest.mark.parametrize(
    "text",
    ["The capital of Peru is Lima.", " two  spaces\n\tand a tab\r\n", "naïve Größe 東京 🦷 \u0000 ـعربي"],
)
def test_the_tokenizer_gives_any_text_back(text: str) -> None:
    tokenizer = Tokenizer.from_file(str(BASE / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_the_chat_marks_are_single_tokens_that_no_text_contains() -> None:
    tokenizer = Tokenizer.from_file(str(BASE / "tokenizer.json"))
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert [tokenizer.encode(mark).ids for mark in marks] == [[0], [1], [2]]
    read = {token for text in pretraining_texts(FACTS, seed=0) for token in tokenizer.encode(text).ids}
    assert read.isdisjoint({0, 1, 2})
