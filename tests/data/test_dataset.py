"""SFTDataset makes the same documents as a run, and arrays as transformers models take them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.small_tokenizer import write_small_tokenizer

from finetooth.base.errors import ConfigError, DataError
from finetooth.config.schema import DataConfig, ModelConfig, SFTConfig
from finetooth.data.dataset import SFTDataset
from finetooth.data.preparation import prepare_data
from finetooth.data.tokenizer.tokenizer import Tokenizer, load_tokenizer

RECORDS: list[dict[str, Any]] = [
    {"prompt": "What is two?", "response": "Two."},
    {"prompt": "What is two and two?", "response": "Two and two is four."},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tokenizer(folder: str) -> Tokenizer:
    return load_tokenizer(folder)


def test_documents_come_in_order_and_as_a_sequence(tokenizer: Tokenizer):
    dataset = SFTDataset(RECORDS, tokenizer)
    assert len(dataset) == 2
    assert list(dataset) == [dataset[0], dataset[1]]
    assert dataset[-1] is dataset[1] is dataset.document(1)
    with pytest.raises(IndexError):
        dataset[2]
    # without a template of its own the tokenizer's prompt and response are set end to end
    assert dataset.template.name == "concat"
    assert tokenizer.decode(dataset[0].token_ids.tolist()) == "What is two?Two.<|im_end|>"
    assert tokenizer.decode(dataset[0].token_ids[dataset[0].loss_weights > 0].tolist()) == "Two.<|im_end|>"
    assert str(dataset[1].origin) == "records:2"


def test_it_is_what_a_run_trains_on(folder: str, tmp_path: Path):
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(map(json.dumps, RECORDS)))
    data = DataConfig(train=str(path), dev=None, cache_dir=str(tmp_path / "cache"))
    config = SFTConfig(model=ModelConfig(path=folder), data=data, output_dir="run")
    store = prepare_data(config).train
    for dataset in (SFTDataset(path, folder), SFTDataset(str(path), folder), SFTDataset(RECORDS, folder)):
        assert dataset.fingerprint == store.fingerprint
        assert dataset.lengths.tolist() == store.lengths.tolist()
        assert dataset.num_targets.tolist() == store.num_targets.tolist()
        assert dataset.loss_weight_totals.tolist() == store.loss_weight_totals.tolist()
    assert SFTDataset(path, folder)[1].origin == store.document(1).origin


def test_padded_arrays_show_what_is_trained(tokenizer: Tokenizer):
    dataset = SFTDataset(RECORDS, tokenizer)
    arrays = dataset.padded()
    short, long = (document.token_ids.tolist() for document in dataset)
    filling = len(long) - len(short)
    pad = tokenizer.pad_token_id
    assert pad is not None
    assert arrays["input_ids"].tolist() == [short + [pad] * filling, long]
    assert arrays["attention_mask"].tolist() == [[1] * len(short) + [0] * filling, [1] * len(long)]
    expected = [
        [
            token_id if weight > 0 else -100
            for token_id, weight in zip(d.token_ids, d.loss_weights, strict=True)
        ]
        for d in dataset
    ]
    assert arrays["labels"].tolist() == [expected[0] + [-100] * filling, expected[1]]
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.int64)}
    wider = dataset.padded(len(long) + 3, pad_id=7)["input_ids"]
    assert wider.shape == (2, len(long) + 3)
    assert wider[1, -3:].tolist() == [7, 7, 7]


def test_padding_falls_back_to_the_end_token(tmp_path: Path):
    folder = write_small_tokenizer(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": None}))
    dataset = SFTDataset(RECORDS[:1], folder)
    assert dataset.padded(40)["input_ids"][0, -1] == dataset.tokenizer.eos_token_id is not None


def test_padding_never_cuts(tokenizer: Tokenizer):
    dataset = SFTDataset(RECORDS, tokenizer)
    length = int(dataset.lengths[1])
    with pytest.raises(DataError) as caught:
        dataset.padded(length - 1)
    assert str(caught.value) == (
        f"records:2: {length} tokens, more than max_length ({length - 1}); "
        "raise max_length, or give it to SFTDataset to leave such records out"
    )


def test_the_settings_are_those_of_a_run(tokenizer: Tokenizer):
    records = [{"messages": [{"role": "user", "content": "Two?"}, {"role": "assistant", "content": "Two."}]}]
    dataset = SFTDataset(records, tokenizer, system="Be brief.", loss_on="all")
    assert tokenizer.decode(dataset[0].token_ids.tolist()).startswith(
        "<|im_start|>system\nBe brief.<|im_end|>"
    )
    assert dataset[0].loss_weights[1] == 1
    named = SFTDataset([{"q": "a", "r": "b"}], tokenizer, fields={"prompt": "q", "response": "r"})
    assert tokenizer.decode(named[0].token_ids.tolist()) == "ab<|im_end|>"
    with pytest.raises(DataError) as caught:
        SFTDataset(records, tokenizer, format="gsm8k")
    assert str(caught.value) == (
        "records:1: no field 'question'; it has 'messages'; add it, or set data.format or data.fields"
    )


def test_the_ledger_tells_every_fate(tokenizer: Tokenizer):
    records = [RECORDS[0], {"prompt": "a", "response": ""}, {"prompt": "a" * 99, "response": "b"}]
    dataset = SFTDataset(records, tokenizer, on_bad_record="drop", max_length=30)
    assert [(line["origin"], line["state"], line["reason"]) for line in dataset.ledger] == [
        ("records:1", "kept", None),
        ("records:2", "refused", "empty answer"),
        ("records:3", "dropped", "longer than data.max_length (30 tokens)"),
    ]
    with pytest.raises(DataError) as caught:
        SFTDataset(records, tokenizer, max_length=30, on_long_document="error")
    assert str(caught.value) == (
        "records:2: empty answer; write an answer or remove the record\n"
        "records:3: longer than data.max_length (30 tokens); raise data.max_length or shorten the record"
    )
    with pytest.raises(DataError) as caught:
        SFTDataset(records[2:], tokenizer, max_length=30)
    assert str(caught.value) == (
        "records: none of 1 records can be used (the first: longer than data.max_length (30 tokens)); "
        "correct the records or raise max_length"
    )


CIRCULAR: dict[str, Any] = {"prompt": "a"}
CIRCULAR["response"] = CIRCULAR


@pytest.mark.parametrize(
    ("fields", "fact"),
    [
        ({"prompt": "a", "response": float("nan")}, "NaN is not JSON"),
        ({"prompt": "a", "response": {1, 2}}, "not JSON: Object of type set is not JSON serializable"),
        ({"prompt": "\ud800"}, "half of a surrogate pair (\\ud800 to \\udfff) stands alone in a text"),
        (CIRCULAR, "not JSON: Circular reference detected"),
        (["a", "b"], "a list instead of an object"),
        ({1: "a", "1": "b"}, "the key '1' stands twice in one object"),
    ],
)
def test_a_dict_is_read_as_strictly_as_a_line(tokenizer: Tokenizer, fields: Any, fact: str):
    with pytest.raises(DataError) as caught:
        SFTDataset([RECORDS[0], fields], tokenizer)
    assert str(caught.value) == f"records:2: {fact}; correct or remove it"


def test_no_records_are_told(tokenizer: Tokenizer):
    for format in ("auto", "messages"):
        with pytest.raises(DataError) as caught:
            SFTDataset([], tokenizer, format=format)
        assert str(caught.value) == "records: holds no record; give at least one"


def test_arguments_that_mean_nothing_are_told_at_once(tokenizer: Tokenizer):
    unusable: dict[str, Any] = {"format": "vicuna", "loss_on": "user", "max_length": 1, "template": "vicuna"}
    with pytest.raises(ConfigError) as caught:
        SFTDataset(RECORDS, tokenizer, **unusable)
    assert str(caught.value) == (
        "SFTDataset: data.format: found the text 'vicuna'; write auto, messages, sharegpt, alpaca, dolly, "
        "oasst, ultrachat, turns, prompt-response, question-answer, gsm8k, text or tokens\n"
        "SFTDataset: data.loss_on: found the text 'user'; write assistant, last or all\n"
        "SFTDataset: data.max_length: found the number 1; write a whole number at least 2\n"
        "SFTDataset: data.template: found the text 'vicuna'; "
        "write auto, chatml, six-token, headers, concat or the path of a .jinja file"
    )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda v: st.lists(v) | st.dictionaries(st.text() | st.integers(), v),
    max_leaves=4,
)


@settings(deadline=None)
@given(records=st.lists(st.dictionaries(st.sampled_from(["prompt", "response", "messages"]), json_values)))
def test_any_dicts_give_documents_or_a_data_error(tokenizer: Tokenizer, records: list[dict[str, Any]]):
    try:
        dataset = SFTDataset([*RECORDS, *records], tokenizer, on_bad_record="drop")
    except DataError:
        pytest.fail("the first two records are sound")
    assert len(dataset.ledger) == 2 + len(records)
    assert len(dataset) == sum(line["documents"] for line in dataset.ledger if line["state"] == "kept")


WITH_TRANSFORMERS = """
import sys
from torch.utils.data import DataLoader
from transformers import AutoTokenizer
from finetooth import SFTDataset
records = [{"prompt": "What is two?", "response": answer} for answer in ("Two.", "2", "two")]
theirs = SFTDataset(records, AutoTokenizer.from_pretrained(sys.argv[1]))
assert theirs.fingerprint == SFTDataset(records, sys.argv[1]).fingerprint
batches = list(DataLoader(theirs, batch_size=2, collate_fn=list))
assert [[document.origin.line for document in batch] for batch in batches] == [[1, 2], [3]]
"""


def test_tokenizers_of_transformers_and_torch_loaders_work_with_it(folder: str):
    subprocess.run([sys.executable, "-c", WITH_TRANSFORMERS, folder], check=True)
