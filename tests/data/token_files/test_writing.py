"""What is written for other systems loads with their readers, and comes back as the same documents."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.chat import tiny_tokenizer
from tests.data.token_files.test_boundaries import (
    ASKED,
    BARE,
    HEADERS,
    RULED,
    TWICE,
    chatml_template,
    template_of,
    turns,
)
from tests.documents import Documents
from tests.token_files import Encoded, chatml, read, words

from finetooth.base.errors import ConfigError, DataError
from finetooth.base.files import check_folder
from finetooth.data.records import Document, GivenTokens, Origin
from finetooth.data.templates.template import Template, resolve_template
from finetooth.data.token_files.writing import Export, Layout, write_token_files

CHATML = chatml_template()
ENCODED = [chatml(CHATML, *turns, end="\n") for turns in (ASKED, TWICE, RULED, ASKED, RULED)]
PAD = CHATML.tokenizer.eos_token_id


def documents(encoded: list[Encoded], *, weight: float = 1.0) -> Documents:
    return Documents(
        [
            Document(
                np.array(ids, np.int32), np.array(mask, np.float32) * weight, 1, Origin("t.jsonl", number)
            )
            for number, (ids, mask) in enumerate(encoded, 1)
        ]
    )


def written(folder: Path, layout: Layout, **options: Any) -> dict[str, Any]:
    splits = {"train": documents(ENCODED[:3]), "dev": documents(ENCODED[3:])}
    defaults: dict[str, Any] = {"template": CHATML, "single_turn": False}
    export = Export(folder, layout, options.pop("row_length", 1024))
    return write_token_files(export, options.pop("splits", splits), **{**defaults, **options})


def without_newline(encoded: list[Encoded]) -> list[Encoded]:
    return [(ids[:-1], mask[:-1]) for ids, mask in encoded]


def as_pairs(path: Path, template: Template = CHATML, *, single_turn: bool = False) -> list[Encoded]:
    entries = read(path, template, single_turn=single_turn)
    assert all(isinstance(entry, GivenTokens) for entry in entries)
    return [
        (entry.token_ids.tolist(), entry.loss_weights.astype(int).tolist())
        for entry in entries
        if isinstance(entry, GivenTokens)
    ]


def test_bin_loads_as_int32_memmaps_and_comes_back(tmp_path: Path):
    folder = tmp_path / "out"
    meta = written(folder, "bin")
    expected = without_newline(ENCODED)
    for name, part in (("train", expected[:3]), ("val", expected[3:])):
        ids = np.memmap(folder / f"{name}.bin", np.int32, mode="r")
        labels = np.memmap(folder / f"{name}_labels.bin", np.int32, mode="r")
        assert ids.tolist() == [token for one, _ in part for token in one]
        assert len(ids) == len(labels) == meta[name]["total_tokens"]
        assert labels[labels != -100].tolist() == ids[labels != -100].tolist()
        assert (labels != -100).sum() == sum(sum(mask) for _, mask in part)
        assert as_pairs(folder / f"{name}.bin") == part
    assert not check_folder(folder)


def test_meta_counts_what_was_written(tmp_path: Path):
    meta = written(tmp_path / "out", "bin")
    lengths = [len(ids) for ids, _ in without_newline(ENCODED)]
    assert json.loads((tmp_path / "out/meta.json").read_text()) == meta
    assert meta == {
        "dataset_type": "finetooth",
        "format": "chatml",
        "train": {"num_examples": 3, "total_tokens": sum(lengths[:3]), "avg_length": sum(lengths[:3]) / 3},
        "val": {"num_examples": 2, "total_tokens": sum(lengths[3:]), "avg_length": sum(lengths[3:]) / 2},
        "total_examples": 5,
        "val_split": 0.4,
    }
    alone = written(tmp_path / "alone", "jsonl", splits={"train": documents(ENCODED)})
    assert alone["val"] == {"num_examples": 0, "total_tokens": 0, "avg_length": 0.0}
    assert alone["train"]["total_tokens"] == sum(len(ids) for ids, _ in ENCODED)
    assert sorted(path.name for path in (tmp_path / "alone").iterdir()) == [
        *("MANIFEST.json", "meta.json", "train.jsonl")
    ]


def test_jsonl_holds_whole_documents(tmp_path: Path):
    written(tmp_path / "out", "jsonl")
    for name, part in (("train", ENCODED[:3]), ("val", ENCODED[3:])):
        rows = [json.loads(line) for line in (tmp_path / f"out/{name}.jsonl").read_text().splitlines()]
        assert [row["input_ids"] for row in rows] == [ids for ids, _ in part]
        for row, (ids, mask) in zip(rows, part, strict=True):
            assert row["labels"] == [token if mark else -100 for token, mark in zip(ids, mask, strict=True)]


def test_h5_loads_as_rows_and_comes_back(tmp_path: Path):
    import h5py

    many = ENCODED * 40
    splits = {"train": documents(many), "dev": documents(ENCODED[:1])}
    written(tmp_path / "out", "h5", splits=splits, row_length=200)
    with h5py.File(tmp_path / "out/sft_packed.h5") as file:
        tokens, masks = file["tokens"], file["loss_mask"]
        assert (tokens.dtype, masks.dtype) == (np.int32, np.int8)
        assert tokens.shape == masks.shape == (len(tokens), 200)
        rows = list(zip(tokens[:], masks[:], strict=True))
    starts = {tuple(ids[:8]) for ids, _ in ENCODED}
    assert all(tuple(ids[:8].tolist()) in starts for ids, _ in rows), "every row begins with a document"
    assert sum(int(mask.sum()) for _, mask in rows) == sum(sum(mask) for _, mask in many)
    assert as_pairs(tmp_path / "out/sft_packed.h5") == without_newline(many)
    assert as_pairs(tmp_path / "out/sft_dev_packed.h5") == without_newline(ENCODED[:1])


def test_a_row_of_1024_is_the_default(tmp_path: Path):
    import h5py

    written(tmp_path / "out", "h5")
    with h5py.File(tmp_path / "out/sft_packed.h5") as file:
        assert file["tokens"].shape == (1, 1024)


@pytest.mark.parametrize("layout", ["bin", "h5"])
def test_single_turns_under_headers_come_back_where_they_are_declared(tmp_path: Path, layout: Layout):
    template = template_of(HEADERS)
    encoded = [words(template, *ASKED), words(template, *RULED), words(template, *ASKED)]
    splits = {"train": documents(encoded)}
    written(tmp_path / "out", layout, splits=splits, template=template, single_turn=True)
    name = "train.bin" if layout == "bin" else "sft_packed.h5"
    assert as_pairs(tmp_path / "out" / name, template, single_turn=True) == encoded
    with pytest.raises(DataError) as error:
        written(tmp_path / "undeclared", layout, splits=splits, template=template)
    assert error.value.problems == [
        f"{tmp_path / 'undeclared' / name}: it begins with a question, and a question behind an answer may "
        "open a document or go on with one; set data.single_turn: true if each has one question, else write "
        ".jsonl with input_ids and labels"
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_documents_that_would_run_together_are_refused(tmp_path: Path):
    template = template_of(HEADERS)
    encoded = [words(template, *RULED), words(template, *ASKED)]
    with pytest.raises(DataError) as error:
        written(tmp_path / "out", "bin", splits={"train": documents(encoded)}, template=template)
    assert error.value.problems == [
        f"{tmp_path / 'out/train.bin'}: document 1 would be read back as another one "
        "(t.jsonl:1 was written); write --to jsonl, which stores boundaries"
    ]
    with pytest.raises(DataError, match="an end token closes turns, not documents"):
        written(tmp_path / "out", "bin", splits={"train": documents(encoded)}, template=template_of(BARE))
    assert not any(tmp_path.iterdir())
    written(tmp_path / "out", "jsonl", splits={"train": documents(encoded)}, template=template_of(BARE))


@pytest.mark.parametrize("layout", ["bin", "h5", "jsonl"])
def test_weights_between_0_and_1_are_refused(tmp_path: Path, layout: Layout):
    splits = {"train": documents(ENCODED[:2], weight=0.5), "dev": documents(ENCODED[:1])}
    with pytest.raises(DataError) as error:
        written(tmp_path / "out", layout, splits=splits)
    assert error.value.problems == [
        f"t.jsonl:{line}: loss weight 0.5, but {layout} knows trained and not trained only; "
        "give its turns the weights 0 or 1"
        for line in (1, 2)
    ]


def test_documents_longer_than_a_row_are_listed(tmp_path: Path):
    lengths = [len(ids) for ids, _ in ENCODED]
    with pytest.raises(DataError) as error:
        written(tmp_path / "out", "h5", row_length=50)
    assert error.value.problems == [
        f"t.jsonl:{line}: {length} tokens do not fit into a row of 50, and none is cut; "
        "raise --row-length or lower data.max_length"
        for line, length in [
            (1, lengths[0]),
            (2, lengths[1]),
            (3, lengths[2]),
            (1, lengths[3]),
            (2, lengths[4]),
        ]
        if length > 50
    ]
    assert not any(tmp_path.iterdir())


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(ConfigError) as error:
        written(tmp_path, "bin")
    assert error.value.problems == [f"--out: {tmp_path} exists already; name another folder"]
    assert (tmp_path / "mine").read_text() == "mine"


# Two documents in the row behind a padded one, the second of which begins near the row's 64th token.
CUT_HEADER = [
    [("user", "a"), ("user", "")],
    [("user", "a"), ("user", ""), ("user", ""), ("user", "")],
    [("user", "a"), ("user", "<"), ("user", "<" * 9), ("user", "<" * 11), ("assistant", "")],
    [("user", "a"), ("user", "")],
]


@example(CUT_HEADER, 100, "h5")
@settings(max_examples=60)
@given(st.lists(turns, min_size=1, max_size=6), st.integers(100, 400), st.sampled_from(["bin", "h5"]))
def test_any_conversations_come_back(
    tmp_path_factory: pytest.TempPathFactory,
    conversations: list[list[tuple[str, str]]],
    row_length: int,
    layout: Layout,
):
    encoded = [chatml(CHATML, *one, end="\n") for one in conversations]
    longest = max(len(ids) for ids, _ in encoded)
    folder = tmp_path_factory.mktemp("any") / "out"
    splits = {"train": documents(encoded)}
    written(folder, layout, splits=splits, row_length=max(longest, row_length))
    name = "train.bin" if layout == "bin" else "sft_packed.h5"
    assert as_pairs(folder / name) == without_newline(encoded)


def test_real_documents_come_back(shared: Path, tmp_path: Path):
    from finetooth.config.schema import DataConfig, ModelConfig, SFTConfig
    from finetooth.data.preparation import prepare_data

    prepared = prepare_data(
        SFTConfig(
            model=ModelConfig(path="unused", tokenizer=str(shared / "tokenizers/qwen3")),
            data=DataConfig(train=str(shared / "data/gsm8k/train.jsonl"), template="chatml", max_records=300),
            output_dir=str(tmp_path / "run"),
        )
    )
    assert prepared.dev is not None
    for layout, name in (("bin", "train.bin"), ("h5", "sft_packed.h5")):
        write_token_files(
            Export(tmp_path / layout, layout),
            {"train": prepared.train, "dev": prepared.dev},
            template=prepared.template,
            single_turn=False,
        )
        found = as_pairs(tmp_path / layout / name, prepared.template)
        expected = [prepared.train.document(number) for number in range(prepared.train.num_documents)]
        assert [ids for ids, _ in found] == [one.token_ids[:-1].tolist() for one in expected]
        assert [mask for _, mask in found] == [
            (one.loss_weights[:-1] > 0).astype(int).tolist() for one in expected
        ]


def test_the_padding_token_is_the_tokenizers(tmp_path: Path):
    import h5py

    from finetooth.data.tokenizer.files import TokenizerFiles
    from finetooth.data.tokenizer.tokenizer import Tokenizer

    tokenizer = tiny_tokenizer()
    files = TokenizerFiles(json.loads(tokenizer.definition), {"pad_token": "</tool_call>"}, None)
    template = resolve_template("chatml", Tokenizer(files))
    written(tmp_path / "out", "h5", template=template)
    with h5py.File(tmp_path / "out/sft_packed.h5") as file:
        assert file["tokens"][0, -1] == tokenizer.control_tokens["</tool_call>"]
