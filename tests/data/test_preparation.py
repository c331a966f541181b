"""What is prepared is complete, accounted for, reused as long as nothing changed, and never half there."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.small_tokenizer import write_small_tokenizer

from finetooth.base.errors import DataError, FinetoothError
from finetooth.base.files import check_folder
from finetooth.config.schema import DataConfig, ModelConfig, SFTConfig, TrainingConfig
from finetooth.data import accounting, preparation
from finetooth.data.ledger import Counts, Outcome
from finetooth.data.preparation import prepare_data
from finetooth.data.sources import inputs
from finetooth.data.sources.reading import read_records
from finetooth.data.store import open_store


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def line(number: int, response: str = "four") -> str:
    return json.dumps({"prompt": f"What is {number}?", "response": response})


def write(name: str, lines: list[str]) -> str:
    Path(name).write_text("\n".join(lines) + "\n")
    return name


def config(tokenizer: str, *, seed: int = 42, **data: Any) -> SFTConfig:
    defaults: dict[str, Any] = {
        "train": "train.jsonl",
        "dev": None,
        "template": "chatml",
        "cache_dir": "cache",
    }
    return SFTConfig(
        model=ModelConfig(path=tokenizer),
        data=DataConfig(**defaults | data),
        training=TrainingConfig(seed=seed),
        output_dir="run",
    )


def ledger_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (folder / "ledger.jsonl").read_text().splitlines()]


def test_records_become_stores_and_a_ledger(tokenizer: str):
    write("train.jsonl", [line(1), "", line(2, "Two and two is four."), line(3)])
    prepared = prepare_data(config(tokenizer))
    assert not prepared.is_reused
    assert prepared.dev is None
    assert not prepared.has_more_records
    assert check_folder(prepared.folder) == []
    assert os.listdir("cache") == [prepared.folder.name]
    assert prepared.folder.name.startswith("prepared-")
    assert sorted(os.listdir(prepared.folder)) == ["MANIFEST.json", "ledger.jsonl", "prepared.json", "train"]
    documents = [prepared.train.document(i) for i in range(prepared.train.num_documents)]
    assert [str(d.origin) for d in documents] == ["train.jsonl:1", "train.jsonl:3", "train.jsonl:4"]
    assert prepared.tokenizer.decode(documents[0].token_ids.tolist()) == (
        "<|im_start|>user\nWhat is 1?<|im_end|>\n<|im_start|>assistant\nfour<|im_end|>\n"
    )
    assert prepared.train.tokenizer_fingerprint == prepared.tokenizer.fingerprint
    assert prepared.train.template_fingerprint == prepared.template.fingerprint
    assert ledger_of(prepared.folder) == [
        {
            "origin": str(d.origin),
            "source": "train.jsonl",
            "split": "train",
            "state": "kept",
            "reason": None,
            "same_as": None,
            "mask": "proved",
            "left_out": 0,
            "documents": 1,
            "tokens": len(d.token_ids),
            "targets": d.num_targets,
        }
        for d in documents
    ]
    assert prepared.counts == {
        "train": Counts(
            records=3,
            kept=3,
            documents=3,
            tokens=prepared.train.num_tokens,
            targets=int(prepared.train.num_targets.sum()),
        )
    }


def test_dropped_and_refused_records_stand_in_the_ledger(tokenizer: str):
    write("train.jsonl", [line(1), "{", line(2, " "), line(3, "four " * 99), line(4)])
    prepared = prepare_data(config(tokenizer, on_bad_record="drop", max_length=60))
    fates = [(entry["origin"], entry["state"], entry["reason"]) for entry in ledger_of(prepared.folder)]
    assert fates == [
        ("train.jsonl:1", "kept", None),
        (
            "train.jsonl:2",
            "refused",
            "broken JSON at character 2: expecting property name enclosed in double quotes",
        ),
        ("train.jsonl:3", "refused", "empty answer"),
        ("train.jsonl:4", "dropped", "longer than data.max_length (60 tokens)"),
        ("train.jsonl:5", "kept", None),
    ]
    counts = prepared.counts["train"]
    assert (counts.records, counts.kept, counts.dropped, counts.refused) == (5, 2, 1, 2)
    assert counts.reasons == {reason: 1 for _, _, reason in fates if reason}
    again = prepare_data(config(tokenizer, on_bad_record="drop", max_length=60))
    assert again.is_reused
    assert again.counts == prepared.counts


def test_all_records_that_stop_are_told_at_once(tokenizer: str):
    write("train.jsonl", [line(1), "{}", line(2, " "), line(3, "four " * 99)])
    with pytest.raises(DataError) as caught:
        prepare_data(config(tokenizer, max_length=60, on_long_document="error"))
    assert caught.value.exit_code == 3
    assert str(caught.value) == (
        "train.jsonl:2: no field 'prompt'; it has no fields; add it, or set data.format or data.fields\n"
        "train.jsonl:3: empty answer; write an answer or remove the record\n"
        "train.jsonl:4: longer than data.max_length (60 tokens); raise data.max_length or shorten the record"
    )
    assert os.listdir("cache") == []


@pytest.mark.parametrize(
    ("lines", "data", "message"),
    [
        (
            [line(1, "four " * 99), line(2, "four " * 99)],
            {},
            "train.jsonl: none of 2 records can be used for train (most often: longer than data.max_length "
            "(60 tokens)); correct the records or raise data.max_length",
        ),
        (
            [line(1)] * 3,
            {"dev": 0.5},
            "train.jsonl: no record is left for dev; "
            "add different records, or set data.dev to a file or to null",
        ),
        (
            [line(1)],
            {"dev": "dev.jsonl"},
            "dev.jsonl: none of 1 records can be used for dev (most often: longer than data.max_length "
            "(60 tokens)); correct the records or raise data.max_length",
        ),
    ],
)
def test_a_split_without_documents_is_told(
    tokenizer: str, lines: list[str], data: dict[str, Any], message: str
):
    write("train.jsonl", lines)
    write("dev.jsonl", [line(1, "four " * 99)])
    with pytest.raises(DataError) as caught:
        prepare_data(config(tokenizer, max_length=60, **data))
    assert str(caught.value) == message


def test_a_share_goes_to_dev_by_content_and_seed(tokenizer: str):
    lines = [line(number) for number in range(40)]
    write("train.jsonl", lines)
    prepared = prepare_data(config(tokenizer, dev=0.25))
    assert prepared.dev is not None
    assert prepared.train.num_documents + prepared.dev.num_documents == 40
    assert 1 <= prepared.dev.num_documents < 20
    in_dev = {e["origin"] for e in ledger_of(prepared.folder) if e["split"] == "dev"}
    assert in_dev == {str(prepared.dev.document(i).origin) for i in range(prepared.dev.num_documents)}

    def dev_texts(**changes: Any) -> set[bytes]:
        dev = prepare_data(config(tokenizer, dev=0.25, **changes)).dev
        assert dev is not None
        return {dev.document(i).token_ids.tobytes() for i in range(dev.num_documents)}

    before = dev_texts()
    write("train.jsonl", lines[::-1])
    assert dev_texts() == before
    assert dev_texts(seed=43) != before


@pytest.mark.parametrize("seed", range(5))
def test_two_records_give_one_to_each_side(tokenizer: str, seed: int):
    write("train.jsonl", [line(1), line(2)])
    for share in (0.01, 0.99):
        prepared = prepare_data(config(tokenizer, dev=share, seed=seed))
        assert prepared.dev is not None
        assert (prepared.train.num_documents, prepared.dev.num_documents) == (1, 1)


@pytest.mark.parametrize("seed", range(5))
def test_the_share_is_drawn_from_prompts_as_they_are_joined(tokenizer: str, seed: int):
    records = [{"instruction": "Add.", "input": f"{n} and {n}", "output": "so"} for n in range(2)]
    write("train.jsonl", list(map(json.dumps, records)))
    prepared = prepare_data(config(tokenizer, dev=0.01, seed=seed, input_join="\n\nInput:\n"))
    assert prepared.dev is not None
    assert (prepared.train.num_documents, prepared.dev.num_documents) == (1, 1)


def test_dev_can_be_a_file(tokenizer: str):
    write("train.jsonl", [line(1), line(2)])
    write(
        "dev.json",
        [json.dumps([{"messages": [{"role": "assistant", "content": word}]} for word in ("a", "b", "c")])],
    )
    prepared = prepare_data(config(tokenizer, dev="dev.json", max_records=1))
    assert prepared.dev is not None
    assert (prepared.train.num_documents, prepared.dev.num_documents) == (1, 3)
    assert [entry["split"] for entry in ledger_of(prepared.folder)] == ["train", "dev", "dev", "dev"]


def test_records_beyond_the_limit_are_not_read(tokenizer: str):
    write("train.jsonl", [line(1), line(2), "{broken"])
    prepared = prepare_data(config(tokenizer, max_records=2))
    assert prepared.counts["train"].records == 2
    assert prepared.has_more_records
    assert json.loads((prepared.folder / "prepared.json").read_text())["has_more_records"] is True
    write("train.jsonl", [line(1), line(2)])
    assert not prepare_data(config(tokenizer, max_records=2)).has_more_records


def test_what_is_passed_over_is_counted(tokenizer: str, monkeypatch: pytest.MonkeyPatch):
    alpaca = {"instruction": "Add.", "input": "2 and 2", "output": "four", "id": ""}
    others = [alpaca | {"input": "", "output": "5"}, alpaca | {"output": "6"}]
    write("train.jsonl", [json.dumps(each) for each in (alpaca, *others)])
    names = {"prompt": "instruction", "response": "output"}
    assert prepare_data(config(tokenizer, fields=names)).unread_fields == {"input": 2}
    assert prepare_data(config(tokenizer, fields=names)).unread_fields == {"input": 2}
    write("train.jsonl", [json.dumps(alpaca | {f"x{n}": n for n in range(1, 9)})])
    monkeypatch.setattr(accounting, "_UNREAD_FIELDS_NOTED", 3)
    assert len(prepare_data(config(tokenizer, fields=names)).unread_fields) == 3


def test_nothing_is_prepared_twice_and_every_change_is_noticed(tokenizer: str, tmp_path: Path):
    write("train.jsonl", [line(number) for number in range(9)])
    write("other.jsonl", [line(number) for number in range(10, 19)])
    other_tokenizer = write_small_tokenizer(tmp_path / "t2", chat_template="{{ messages }}")
    settings = Path(other_tokenizer, "tokenizer_config.json")
    settings.write_text(settings.read_text().replace('"pad_token": "<|endoftext|>", ', ""))
    Path("own.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ note }}{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{{ note }}{% endif %}"
    )
    base = config(tokenizer, dev=0.5)
    variants: list[SFTConfig] = [
        base,
        config(tokenizer, dev=0.4),
        config(tokenizer, dev=0.5, seed=1),
        config(tokenizer, dev="other.jsonl"),
        config(tokenizer),
        config(tokenizer, train="other.jsonl"),
        config(tokenizer, max_length=100),
        config(tokenizer, max_records=8),
        config(tokenizer, on_bad_record="drop"),
        config(tokenizer, on_long_document="error"),
        config(tokenizer, loss_on="all"),
        config(tokenizer, template="concat"),
        config(tokenizer, fields={"prompt": "response", "response": "prompt"}),
        config(tokenizer, system="Be brief."),
        config(tokenizer, template="own.jinja"),
        config(tokenizer, template="own.jinja", template_args={"note": "x"}),
        config(tokenizer, on_duplicate="keep"),
        config(other_tokenizer),
    ]
    folders = {prepare_data(variant).folder for variant in variants}
    assert len(folders) == len(variants)
    assert all(prepare_data(variant).is_reused for variant in variants)
    # what does not touch the documents does not prepare them anew
    assert prepare_data(replace(base, output_dir="elsewhere")).is_reused
    assert prepare_data(config(tokenizer, seed=7)).is_reused
    before = Path("train.jsonl").read_text()
    write("train.jsonl", [before.strip().replace("8", "9")])
    assert not prepare_data(base).is_reused
    Path("train.jsonl").write_text(before)
    assert prepare_data(base).is_reused
    Path("own.jinja").write_text(Path("own.jinja").read_text() + "\n")
    assert not prepare_data(config(tokenizer, template="own.jinja")).is_reused


def test_other_code_or_libraries_prepare_anew(tokenizer: str, monkeypatch: pytest.MonkeyPatch):
    write("train.jsonl", [line(1)])
    prepare_data(config(tokenizer))
    for name in ("code_fingerprint", "importlib.metadata.version"):
        with monkeypatch.context() as patch:
            patch.setattr(f"finetooth.data.preparation.{name}", lambda *_: "another")
            assert not prepare_data(config(tokenizer)).is_reused
    assert prepare_data(config(tokenizer)).is_reused


@pytest.mark.parametrize("name", ["train/token_ids.bin", "prepared.json", "ledger.jsonl", "MANIFEST.json"])
def test_a_damaged_folder_is_made_anew(tokenizer: str, name: str):
    write("train.jsonl", [line(1)])
    folder = prepare_data(config(tokenizer)).folder
    (folder / name).write_bytes(b"")
    again = prepare_data(config(tokenizer))
    assert not again.is_reused
    assert again.folder == folder
    assert check_folder(folder) == []


def test_the_cache_is_where_it_is_wanted(tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write("train.jsonl", [line(1)])
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FINETOOTH_CACHE", raising=False)
    assert prepare_data(config(tokenizer, cache_dir=None)).folder.parent == tmp_path / "home/.cache/finetooth"
    monkeypatch.setenv("FINETOOTH_CACHE", str(tmp_path / "named"))
    assert prepare_data(config(tokenizer, cache_dir=None)).folder.parent == tmp_path / "named"
    assert prepare_data(config(tokenizer, cache_dir="~/mine")).folder.parent == tmp_path / "home/mine"


def test_a_file_that_changes_while_it_is_read_is_told(tokenizer: str, monkeypatch: pytest.MonkeyPatch):
    write("train.jsonl", [line(1)])

    def growing(path: str) -> Iterator[Any]:
        yield from read_records(path)
        with Path(path).open("a") as file:
            file.write(line(2))

    monkeypatch.setattr(inputs, "read_records", growing)
    with pytest.raises(DataError) as caught:
        prepare_data(config(tokenizer))
    assert str(caught.value) == (
        "train.jsonl: the file changed while it was read; run again when it is complete"
    )


def lose_an_outcome(outcomes: list[Outcome]) -> list[Outcome]:
    return outcomes[1:]


def call_an_outcome_something_else(outcomes: list[Outcome]) -> list[Outcome]:
    return [replace(outcomes[0], state="lost"), *outcomes[1:]]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("break_it", "mistakes"),
    [
        (lose_an_outcome, "3 records read"),
        (call_an_outcome_something_else, "3 records of train in other states"),
    ],
)
def test_a_ledger_that_does_not_add_up_is_told(
    tokenizer: str, monkeypatch: pytest.MonkeyPatch, break_it: Any, mistakes: str
):
    write("train.jsonl", [line(1), line(2), line(3)])
    rightly = accounting.render_records

    def wrongly(*arguments: Any, **named: Any) -> Iterator[list[Outcome]]:
        for outcomes in rightly(*arguments, **named):
            yield break_it(outcomes)

    monkeypatch.setattr(accounting, "render_records", wrongly)
    with pytest.raises(FinetoothError) as caught:
        prepare_data(config(tokenizer))
    assert str(caught.value).endswith(
        f"ledger.jsonl: it does not add up with {mistakes}; report this mistake of finetooth"
    )


def test_a_store_that_lost_a_document_is_told(tokenizer: str, monkeypatch: pytest.MonkeyPatch):
    write("train.jsonl", [line(1), line(2)])
    extend = accounting.StoreWriter.extend

    def forgetful(self: Any, documents: Any) -> None:
        extend(self, documents[:1])

    monkeypatch.setattr(accounting.StoreWriter, "extend", forgetful)
    with pytest.raises(FinetoothError) as caught:
        prepare_data(config(tokenizer))
    told = str(caught.value).split(": ", 1)[1]
    assert told.startswith("it does not add up with 1 documents stored for train, ")
    assert "tokens stored for train" in told
    assert "targets stored for train" in told


AT_ONCE = """
import sys
from finetooth.config.schema import DataConfig, ModelConfig, SFTConfig
from finetooth.data.preparation import prepare_data
prepared = prepare_data(SFTConfig(
    model=ModelConfig(path=sys.argv[1]), output_dir="run",
    data=DataConfig(train="train.jsonl", dev=0.1, template="chatml", cache_dir="cache")))
print(prepared.train.fingerprint)
"""


def test_processes_that_prepare_at_once_do_no_harm(tokenizer: str):
    write("train.jsonl", [line(number) for number in range(300)])
    command = [sys.executable, "-c", AT_ONCE, tokenizer]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    fingerprints = {process.communicate()[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    (folder,) = Path("cache").iterdir()
    assert check_folder(folder) == []
    assert fingerprints == {open_store(folder / "train").fingerprint}


def test_the_second_of_two_takes_what_the_first_made(tokenizer: str, monkeypatch: pytest.MonkeyPatch):
    write("train.jsonl", [line(1)])
    first = prepare_data(config(tokenizer)).folder
    kept = shutil.copytree(first, "kept")
    shutil.rmtree(first)
    written = preparation.write_prepared

    def slow(*arguments: Any) -> dict[str, Any]:
        described = written(*arguments)
        shutil.copytree(kept, first)  # another process finishes in between
        return described

    monkeypatch.setattr(preparation, "write_prepared", slow)
    prepared = prepare_data(config(tokenizer))
    assert prepared.folder == first
    assert os.listdir("cache") == [first.name]


def test_neither_torch_nor_transformers_is_loaded(tokenizer: str):
    write("train.jsonl", [line(1), line(2)])
    check = AT_ONCE + "assert not {'torch', 'transformers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", check.replace("0.1", "None"), tokenizer], check=True)


def test_memory_does_not_grow_with_the_number_of_records(tokenizer: str, monkeypatch: pytest.MonkeyPatch):
    import tracemalloc

    monkeypatch.setattr("finetooth.data.rendering._PORTION_RECORDS", 50)
    peaks: list[int] = []
    for number in (200, 1600):
        write("train.jsonl", [line(n, "Two and two is four. " * 20) for n in range(number)])
        tracemalloc.start()
        prepare_data(config(tokenizer))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    size = Path("train.jsonl").stat().st_size
    assert peaks[1] < peaks[0] + size / 4


def test_real_records_are_kept_to_the_last(shared: Path):
    train = str(shared / "data/gsm8k/train.jsonl")
    prepared = prepare_data(config(str(shared / "tokenizers/qwen3"), train=train, max_records=300))
    assert prepared.counts["train"].kept == 300
    assert prepared.has_more_records
    document = prepared.train.document(0)
    targets = document.token_ids[document.loss_weights > 0].tolist()
    assert prepared.tokenizer.decode(targets) == (
        "Natalia sold 48/2 = 24 clips in May.\nNatalia sold 48+24 = 72 clips altogether in April and May.\n"
        "<answer>72</answer><|im_end|>"
    )
    context = document.token_ids[: document.prompt_length].tolist()
    assert prepared.tokenizer.decode(context).endswith("in April and May?<|im_end|>\n<|im_start|>assistant\n")
