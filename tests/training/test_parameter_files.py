"""Parameters are written in any type, in files of any size, and transformers finds every one."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.documents import save_small_model
from transformers import AutoModelForCausalLM

from finetooth.base.errors import ConfigError
from finetooth.training.parameter_files import (
    _grouped,
    held_parameters,
    stored_parameters,
    write_parameters,
)


@pytest.mark.parametrize("shard_bytes", [1, 4000, 10**9])
def test_plain_transformers_loads_what_was_there_whatever_the_size_of_the_files(
    tmp_path: Path, shard_bytes: int
):
    source = save_small_model(tmp_path / "source")
    (tmp_path / "out").mkdir()
    parameters = stored_parameters(source)
    write_parameters(tmp_path / "out", parameters, dtype=torch.float32, shard_bytes=shard_bytes)
    (tmp_path / "out" / "config.json").write_bytes((source / "config.json").read_bytes())
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) == {1: len(parameters.shapes), 10**9: 1}.get(shard_bytes, len(files)) >= 1
    ours, theirs = (
        AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (tmp_path / "out", source)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_files_are_named_as_transformers_names_them(tmp_path: Path):
    tensors = {name: torch.full((4,), float(number)) for number, name in enumerate("abc")}
    write_parameters(tmp_path, held_parameters(tensors), dtype=torch.bfloat16, shard_bytes=16)
    assert json.loads((tmp_path / "model.safetensors.index.json").read_text()) == {
        "metadata": {"total_size": 24},
        "weight_map": {
            "a": "model-00001-of-00002.safetensors",
            "b": "model-00001-of-00002.safetensors",
            "c": "model-00002-of-00002.safetensors",
        },
    }
    (last,) = load_file(tmp_path / "model-00002-of-00002.safetensors").values()
    assert last.dtype == torch.bfloat16
    assert last.tolist() == [2.0] * 4


def test_whole_numbers_keep_their_type(tmp_path: Path):
    save_file({"steps": torch.tensor([7]), "rate": torch.tensor([0.5])}, tmp_path / "in.safetensors")
    (tmp_path / "out").mkdir()
    write_parameters(tmp_path / "out", stored_parameters(tmp_path), dtype=torch.float16, shard_bytes=10**9)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert {name: tensor.dtype for name, tensor in written.items()} == {
        "steps": torch.int64,
        "rate": torch.float16,
    }


def test_values_that_the_type_cannot_hold_are_told(tmp_path: Path):
    tensors = held_parameters({"head": torch.tensor([1e6])})
    with pytest.raises(ConfigError) as caught:
        write_parameters(tmp_path, tensors, dtype=torch.float16, shard_bytes=10**9)
    assert str(caught.value) == "--dtype: head holds values beyond what float16 can; write bf16 or fp32"
    write_parameters(tmp_path, tensors, dtype=torch.bfloat16, shard_bytes=10**9)


@given(st.dictionaries(st.text(min_size=1), st.integers(0, 20), min_size=1), st.integers(1, 30))
def test_every_tensor_is_in_one_file_and_no_file_is_larger_than_asked(sizes: dict[str, int], most: int):
    groups = _grouped(sizes, most)
    assert [name for group in groups for name in group] == list(sizes)
    assert all(len(group) == 1 or sum(sizes[name] for name in group) <= most for group in groups)
    assert all(groups)
