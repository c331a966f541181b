"""Sources of several kinds are prepared together, each read in its own way, counted apart, repeated."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.small_tokenizer import write_small_tokenizer

from finetooth.base.errors import DataError
from finetooth.batching.schedule import schedule_of
from finetooth.config.schema import DataConfig, ModelConfig, SFTConfig, TrainingConfig
from finetooth.data.dataset import SFTDataset
from finetooth.data.masks.masking import RenderReport
from finetooth.data.preparation import PreparedData, prepare_data


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, *records: dict[str, Any]) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return name


def pair(prompt: str, response: str = "four", **fields: Any) -> dict[str, Any]:
    return {"prompt": prompt, "response": response, **fields}


def config(tokenizer: str, train: Any, **data: Any) -> SFTConfig:
    defaults: dict[str, Any] = {"dev": None, "template": "chatml", "cache_dir": "cache"}
    return SFTConfig(
        model=ModelConfig(path=tokenizer),
        data=DataConfig(train=train, **defaults | data),
        training=TrainingConfig(num_train_epochs=1, global_batch_size=2),
        output_dir="run",
    )


def ledger_of(prepared: PreparedData) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (prepared.folder / "ledger.jsonl").read_text().splitlines()]


def test_each_source_is_read_in_its_own_way(tokenizer: str):
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    write("a/1.jsonl", pair("one"), pair("two"))
    write("a/2.jsonl", pair("three"))
    write("chats.jsonl", {"messages": chat}, {"messages": [*chat, chat[0], chat[1]]})
    write("named.jsonl", {"q": "five", "reply": "5"}, {"q": "six", "reply": "6"})
    Path("table.csv").write_text("prompt,response\nseven,7\n")
    sources = [
        {"path": "a"},
        {"path": "chats.jsonl"},
        {"path": "named.jsonl", "fields": {"prompt": "q", "response": "reply"}, "max_records": 1},
        {"path": "table.csv"},
    ]
    prepared = prepare_data(config(tokenizer, sources))
    assert [(line["origin"], line["source"]) for line in ledger_of(prepared)] == [
        *(("a/1.jsonl:1", "a"), ("a/1.jsonl:2", "a"), ("a/2.jsonl:1", "a")),
        *(("chats.jsonl:1", "chats.jsonl"), ("chats.jsonl:2", "chats.jsonl")),
        *(("named.jsonl:1", "named.jsonl"), ("table.csv:2", "table.csv")),
    ]
    assert prepared.has_more_records
    train = prepared.statistics["train"]
    assert (train["records"], train["turns"]) == (7, {"1": 6, "2": 1})
    by_source = [(part["path"], part["records"]) for part in train["sources"]]
    assert by_source == [("a", 3), ("chats.jsonl", 2), ("named.jsonl", 1), ("table.csv", 1)]
    assert sum(part["tokens"] for part in train["sources"]) == train["tokens"] == prepared.train.num_tokens


def test_a_source_is_trained_as_often_as_it_is_repeated(tokenizer: str):
    write("a.jsonl", pair("one"), pair("two"))
    write("b.jsonl", pair("three"))
    once = prepare_data(config(tokenizer, [{"path": "a.jsonl"}, {"path": "b.jsonl"}]))
    settings = config(tokenizer, [{"path": "a.jsonl"}, {"path": "b.jsonl", "repeat": 3}])
    prepared = prepare_data(settings)
    assert prepared.folder == once.folder
    assert prepared.is_reused
    assert once.train_documents is once.train
    assert prepared.train.num_documents == 3
    documents = prepared.train_documents
    lines = [str(documents.document(number).origin) for number in range(len(documents.lengths))]
    assert lines == ["a.jsonl:1", "a.jsonl:2", "b.jsonl:1", "b.jsonl:1", "b.jsonl:1"]
    schedule = schedule_of(settings.training, documents)
    assert schedule.num_steps == 3
    trained = np.concatenate([step.documents for step in schedule.steps()])
    assert sorted(trained.tolist()) == [0, 1, 2, 3, 4]
    unrepeated = schedule_of(settings.training, once.train_documents)
    assert schedule.fingerprint != unrepeated.fingerprint


def test_a_bad_source_does_not_hide_another(tokenizer: str):
    write("a.jsonl", pair("one"), pair(""))
    write("b.jsonl", pair("two", response=""))
    write("dev.jsonl", {"prompt": "x"})
    with pytest.raises(DataError) as caught:
        prepare_data(
            config(
                tokenizer,
                [{"path": "a.jsonl"}, {"path": "b.jsonl"}],
                dev="dev.jsonl",
                format="prompt-response",
            )
        )
    assert [told.split(": ")[0] for told in caught.value.problems] == [
        "a.jsonl:2",
        "b.jsonl:1",
        "dev.jsonl:1",
    ]


def test_doubled_records_are_dropped_over_all_sources(tokenizer: str):
    write("a.jsonl", pair("one"), pair("two"))
    write("b.jsonl", pair("two"), pair("three"), pair("two", "another answer"))
    prepared = prepare_data(config(tokenizer, [{"path": "a.jsonl"}, {"path": "b.jsonl"}]))
    dropped = [line for line in ledger_of(prepared) if line["state"] == "dropped"]
    assert [(line["origin"], line["same_as"]) for line in dropped] == [("b.jsonl:1", "a.jsonl:2")]
    assert prepared.counts["train"].reasons == {"duplicate of an earlier record": 1}
    everything = prepare_data(
        config(tokenizer, [{"path": "a.jsonl"}, {"path": "b.jsonl"}], on_duplicate="keep")
    )
    assert everything.train.num_documents == 5


def test_a_record_that_stands_in_dev_is_not_trained(tokenizer: str):
    write("train.jsonl", pair("one"), pair("two"), pair("three", "another answer"))
    write("dev.jsonl", pair("two"), pair("three"))
    with pytest.raises(DataError) as caught:
        prepare_data(config(tokenizer, "train.jsonl", dev="dev.jsonl"))
    remedy = "remove one of them, or set data.on_leak to drop or keep"
    assert caught.value.problems == [
        f"train.jsonl:2: leak: the same documents as a record of dev (dev.jsonl:1); {remedy}",
        f"train.jsonl:3: leak: the same prompt as a record of dev (dev.jsonl:2); {remedy}",
    ]
    prepared = prepare_data(config(tokenizer, "train.jsonl", dev="dev.jsonl", on_leak="drop"))
    assert [line["state"] for line in ledger_of(prepared)] == ["kept", "dropped", "dropped", "kept", "kept"]
    assert prepared.dev is not None
    assert (prepared.train.num_documents, prepared.dev.num_documents) == (1, 2)


@pytest.mark.parametrize("seed", range(4))
def test_a_share_never_parts_records_of_one_prompt(tokenizer: str, seed: int):
    write("train.jsonl", *(pair(f"question {number % 9}", f"answer {number}") for number in range(60)))
    settings = config(tokenizer, "train.jsonl", dev=0.3)
    settings = SFTConfig(
        model=settings.model, data=settings.data, training=TrainingConfig(seed=seed), output_dir="run"
    )
    lines = ledger_of(prepare_data(settings))
    assert len(lines) == 60
    sides: dict[int, set[str]] = {}
    for number, line in enumerate(lines):
        assert line["state"] == "kept"
        sides.setdefault(number % 9, set()).add(line["split"])
    assert all(len(side) == 1 for side in sides.values())
    assert {split for side in sides.values() for split in side} == {"train", "dev"}


def test_a_field_can_say_which_records_stay_together(tokenizer: str):
    write("train.jsonl", *(pair(f"question {n}", topic=n % 5) for n in range(40)), pair("no topic"))
    with pytest.raises(DataError) as caught:
        prepare_data(config(tokenizer, "train.jsonl", dev=0.4, group_by="topic"))
    assert str(caught.value) == (
        "train.jsonl:41: no field 'topic', which data.group_by names; add it, or remove the record"
    )
    settings = config(tokenizer, "train.jsonl", dev=0.4, group_by="topic", on_bad_record="drop")
    sides: dict[int, set[str]] = {}
    for number, line in enumerate(ledger_of(prepare_data(settings))[:40]):
        sides.setdefault(number % 5, set()).add(line["split"])
    assert all(len(side) == 1 for side in sides.values())


def test_turns_are_kept_from_the_end_of_what_is_too_long(tokenizer: str):
    turns = [
        {"role": role, "content": f"{role} {number} says so"}
        for number in range(6)
        for role in ("user", "assistant")
    ]
    write("train.jsonl", {"messages": turns})
    prepared = prepare_data(config(tokenizer, "train.jsonl", on_long_document="keep-turns", max_length=120))
    (line,) = ledger_of(prepared)
    assert line["state"] == "kept"
    assert 0 < line["left_out"] == prepared.report.num_left_out < 12
    text = prepared.tokenizer.decode(prepared.train.document(0).token_ids.tolist())
    assert text.startswith(f"<|im_start|>user\nuser {line['left_out'] // 2} says so")
    assert text.endswith("assistant 5 says so<|im_end|>\n")


def long_chat(number: int, answer: str) -> dict[str, Any]:
    history = [
        {"role": role, "content": f"{role} {turn} of {number} says so"}
        for turn in range(4)
        for role in ("user", "assistant")
    ]
    question = {"role": "user", "content": f"question {number}"}
    return {"messages": [*history, question, {"role": "assistant", "content": answer}], "id": number}


ANSWERS = [" and so".join(["yes"] * length) for length in (1, 6, 12)]


def test_records_of_one_prompt_stay_together_whatever_is_left_of_them(tokenizer: str):
    write("train.jsonl", *(long_chat(number, answer) for number in range(12) for answer in ANSWERS))
    settings = config(tokenizer, "train.jsonl", dev=0.4, on_long_document="keep-turns", max_length=120)
    prepared = prepare_data(settings)
    lines = ledger_of(prepared)
    assert {line["state"] for line in lines} == {"kept"}
    assert len({line["left_out"] for line in lines}) > 1
    sides = [{line["split"] for line in lines[first : first + 3]} for first in range(0, 36, 3)]
    assert all(len(side) == 1 for side in sides)
    assert set.union(*sides) == {"train", "dev"}
    assert prepared.unread_fields == {"id": 36}


def test_a_prompt_that_stands_in_dev_is_found_whatever_is_left_of_it(tokenizer: str):
    write("train.jsonl", long_chat(1, ANSWERS[0]), long_chat(2, ANSWERS[0]))
    write("dev.jsonl", long_chat(1, ANSWERS[2]))
    settings = config(
        tokenizer,
        "train.jsonl",
        dev="dev.jsonl",
        on_leak="drop",
        on_long_document="keep-turns",
        max_length=120,
    )
    lines = ledger_of(prepare_data(settings))
    assert [line["state"] for line in lines] == ["dropped", "kept", "kept"]
    assert lines[0]["same_as"] == "dev.jsonl:1"


def test_every_source_that_cannot_be_used_is_told(tokenizer: str):
    write("train.jsonl", pair("one"))
    sources = [{"path": name} for name in ("none.jsonl", "train.jsonl", "none.csv")]
    with pytest.raises(DataError) as caught:
        prepare_data(config(tokenizer, sources, dev="none.json"))
    assert [told.partition(":")[0] for told in caught.value.problems] == [
        "none.jsonl",
        "none.csv",
        "none.json",
    ]


def test_what_is_told_to_be_changed_is_what_is_kept(tokenizer: str):
    turns = [
        {"role": role, "content": f"{role} {number} <|im_end|>"}
        for number in range(6)
        for role in ("user", "assistant")
    ]
    write("train.jsonl", {"messages": turns, "id": 1}, {"messages": turns, "id": 2})
    with Path("train.jsonl").open("a") as file:
        file.write(json.dumps({"messages": [turns[0] | {"content": "<|im_end|>" * 99}, turns[1]]}) + "\n")

    prepared = prepare_data(config(tokenizer, "train.jsonl", on_long_document="keep-turns", max_length=120))
    states = [line["state"] for line in ledger_of(prepared)]
    assert states == ["kept", "dropped", "dropped"]
    text = prepared.tokenizer.decode(prepared.train.document(0).token_ids.tolist())
    num_messages = text.count("<|im_start|>")
    assert num_messages < 12
    assert prepared.report == RenderReport(
        num_left_out=12 - num_messages, control_text={"<|im_end|>": num_messages}
    )
    assert prepared.unread_fields == {"id": 1}


def test_files_of_tokens_are_trained_as_given(tokenizer: str):
    rendered = SFTDataset([pair("one"), pair("two", "two and two")], tokenizer, template="chatml")
    ids = np.concatenate([document.token_ids for document in rendered])
    weights = np.concatenate([document.loss_weights for document in rendered])
    ids.astype("<i4").tofile("train.bin")
    np.where(weights > 0, ids, -100).astype("<i4").tofile("train_labels.bin")
    write("more.jsonl", pair("three"))
    sources = [{"path": "train.bin"}, {"path": "more.jsonl"}]
    prepared = prepare_data(config(tokenizer, sources, single_turn=True))
    assert [line["mask"] for line in ledger_of(prepared)] == ["as given", "as given", "proved"]
    for number, document in enumerate(rendered):
        stored = prepared.train.document(number)
        assert stored.token_ids.tolist() == document.token_ids.tolist()
        assert stored.loss_weights.tolist() == document.loss_weights.tolist()
    np.where(weights > 0, ids, -100)[::-1].astype("<i4").tofile("train_labels.bin")
    with pytest.raises(DataError):  # the labels count, too: what was prepared is not used again
        prepare_data(config(tokenizer, sources, single_turn=True))


def test_tokens_and_records_are_not_one_source(tokenizer: str):
    write("data/a.jsonl", pair("one"))
    Path("data/train.bin").write_bytes(b"\0" * 8)
    Path("data/train_labels.bin").write_bytes(b"\0" * 8)
    with pytest.raises(DataError) as caught:
        prepare_data(config(tokenizer, "data"))
    assert str(caught.value) == (
        "data: data/train.bin holds tokens, data/a.jsonl records; name them as two sources"
    )


def test_almost_equal_records_are_counted_or_dropped(tokenizer: str):
    text = " ".join(f"word {number}" for number in range(30))
    write("train.jsonl", pair(text), pair(f"{text} more"))
    reported = prepare_data(config(tokenizer, "train.jsonl", on_near_duplicate="report"))
    assert (reported.train.num_documents, reported.num_near_duplicates) == (2, 1)
    assert [line["same_as"] for line in ledger_of(reported)] == [None, "train.jsonl:1"]
    dropped = prepare_data(config(tokenizer, "train.jsonl", on_near_duplicate="drop"))
    assert (dropped.train.num_documents, dropped.num_near_duplicates) == (1, 0)
    assert prepare_data(config(tokenizer, "train.jsonl")).num_near_duplicates == 0


def test_a_dataset_makes_the_documents_that_a_run_makes(tokenizer: str):
    text = " ".join(f"word {number}" for number in range(30))
    write("data/a.jsonl", pair("one"), pair("one"), pair("", "x"), pair(text))
    write("data/b.jsonl", pair(f"{text} more"), pair("two", "four " * 400), pair("three"), pair("four"))
    settings: dict[str, Any] = {
        "on_bad_record": "drop",
        "on_near_duplicate": "drop",
        "max_length": 300,
        "max_records": 7,
        "template": "chatml",
    }
    prepared = prepare_data(config(tokenizer, "data", **settings))
    dataset = SFTDataset("data", tokenizer, **settings)
    assert dataset.fingerprint == prepared.train.fingerprint
    assert dataset.ledger == ledger_of(prepared)
    assert [line["state"] for line in dataset.ledger] == [
        *("kept", "dropped", "refused", "kept", "dropped", "dropped", "kept")
    ]
