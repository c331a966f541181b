"""Whatever lies in a model's folder: nothing of it runs, and what cannot be used is told in a sentence."""

import contextlib
import json
import pickle
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.modeling_utils as modeling_utils
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.canaries import Canary
from tests.documents import save_small_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, dynamic_module_utils

from finetooth.base.devices import DeviceManager
from finetooth.base.errors import ConfigError
from finetooth.config.schema import ModelConfig
from finetooth.data.tokenizer.files import read_tokenizer_files
from finetooth.model.load import load_policy
from finetooth.model.policy import PolicyModel
from finetooth.model.weight_files import examine_weight_files

CPU = DeviceManager("cpu", "fp32")
INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
CLASSES = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer")


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Canary:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    return Canary(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small model."""
    return save_small_model(tmp_path / "model")


def load(folder: Path) -> PolicyModel:
    return load_policy(ModelConfig(path=str(folder)), devices=CPU)


def refusal(folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder)
    return str(caught.value)


def change_config(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def divide(folder: Path) -> dict[str, str]:
    """Puts the model into two files with an index; returns its weight_map."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    weight_map = {name: FIRST if place % 2 else SECOND for place, name in enumerate(names)}
    for file in (FIRST, SECOND):
        part = {name: tensors[name] for name in names if weight_map[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    write_index(folder, weight_map)
    return weight_map


def write_index(folder: Path, weight_map: dict[str, str]) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


# Code. Each test ends with its control: the same canary, run on purpose, leaves its file.


def test_code_of_a_repository_never_runs(folder: Path, canary: Canary):
    (folder / "evil.py").write_text(canary.source)
    change_config(folder, auto_map=dict.fromkeys(CLASSES, "evil.Evil"), trust_remote_code=True)
    load(folder).generate(torch.tensor([[1, 2]]), max_new_tokens=1)
    change_config(folder, model_type="evil")
    assert "transformers knows no model_type 'evil'; code that comes with a model is not run" in refusal(
        folder
    )
    assert not canary.has_run
    with contextlib.suppress(Exception):
        AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert canary.has_run


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation"])
def test_kernels_that_a_config_names_are_neither_fetched_nor_run(
    name: str, folder: Path, canary: Canary, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(modeling_utils, "lazy_import_flash_attention", lambda *_, **__: canary.run())
    change_config(folder, **{name: "kernels-community/evil"})
    assert load(folder).model.config._attn_implementation == "sdpa"
    assert not canary.has_run
    with contextlib.suppress(Exception):
        AutoModelForCausalLM.from_pretrained(folder)
    assert canary.has_run


def test_code_for_generation_never_runs(folder: Path, canary: Canary):
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(canary.source)
    settings = {"custom_generate": str(folder), "trust_remote_code": True}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    policy = load(folder)
    policy.generate(torch.tensor([[1, 2]]), max_new_tokens=1)
    assert not canary.has_run
    policy.model.load_custom_generate(folder, trust_remote_code=True)
    assert canary.has_run


@pytest.mark.slow
def test_code_of_a_tokenizer_never_runs(folder: Path, canary: Canary):
    """Without tokenizer.json, transformers converts what is there, in a process of its own."""
    (folder / "evil.py").write_text(canary.source)
    (folder / "vocab.json").write_text('{"a": 0, "b": 1}')
    (folder / "merges.txt").write_text("#version: 0.2\n")
    settings = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "trust_remote_code": True}))
    with contextlib.suppress(ConfigError):
        read_tokenizer_files(str(folder), "model.tokenizer")
    assert not canary.has_run
    with contextlib.suppress(Exception):
        AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    assert canary.has_run


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "adapter_model.bin", "optimizer.pt", "training_args.bin"]
)
def test_a_pickle_beside_the_parameters_is_not_opened(name: str, folder: Path, canary: Canary):
    (folder / name).write_bytes(canary.pickle)
    load(folder)
    assert not canary.has_run
    pickle.loads((folder / name).read_bytes())
    assert canary.has_run


def test_a_pickle_in_place_of_the_parameters_is_refused(folder: Path, canary: Canary):
    path = folder / "model.safetensors"
    path.write_bytes(canary.pickle)
    assert refusal(folder) == (
        f"model.path: {path}: cut short, or no safetensors file: {len(canary.pickle)} bytes; "
        "use an intact copy"
    )
    path.rename(folder / "pytorch_model.bin")
    assert refusal(folder) == (
        f"model.path: {folder} holds neither model.safetensors nor {INDEX}; name a folder with parameters"
    )
    change_config(folder, transformers_weights="pytorch_model.bin")
    assert refusal(folder) == (
        f"model.path: {folder}/config.json: it names a file of parameters; give the files their usual names"
    )
    assert not canary.has_run
    pickle.loads((folder / "pytorch_model.bin").read_bytes())
    assert canary.has_run


# Files: an index that leads elsewhere, what is missing, and headers.


def test_an_index_is_followed(folder: Path):
    whole = load(folder).state_dict()
    divide(folder)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in load(folder).state_dict().items())


@pytest.mark.parametrize(
    "name",
    [
        *("../outside.safetensors", "/tmp/outside.safetensors", "parts/inside.safetensors"),
        *("..", "", "C:\\outside.safetensors", "C:outside.safetensors", "zero\0.safetensors"),
        *("pytorch_model.bin", "hf://evil/model.safetensors"),
    ],
)
def test_an_index_that_leads_elsewhere_is_refused(name: str, folder: Path):
    """Also where such a file is there."""
    weight_map = divide(folder)
    with contextlib.suppress(OSError, ValueError):
        (folder / "parts").mkdir()
        (folder / name).write_bytes((folder / SECOND).read_bytes())
    write_index(folder, {**weight_map, "model.norm.weight": name})
    assert refusal(folder) == (
        f"model.path: {folder}/{INDEX} names what is no *.safetensors file of this folder: {name}; "
        "use a model that you trust"
    )


def test_files_that_are_missing_are_named(folder: Path):
    divide(folder)
    (folder / SECOND).unlink()
    assert refusal(folder) == (
        f"model.path: {folder}/{INDEX} names files that are not there: {SECOND}; "
        "fetch or copy the whole model"
    )


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        ("[]", "Expected `object`, got `array`"),
        ('{"weight_map": {}}', "Object missing required field `metadata`"),
        ('{"metadata": {}, "weight_map": {"a": 1}}', "Expected `str`, got `int` - at `$.weight_map[...]`"),
        ("{" * 99, "JSON is malformed: object keys must be strings (byte 1)"),
        ('{"metadata": ' + '{"a":' * 99_999, "maximum recursion depth exceeded"),
    ],
)
def test_what_is_no_index_is_refused(content: str, fact: str, folder: Path):
    divide(folder)
    (folder / INDEX).write_text(content)
    told = refusal(folder)
    assert told.startswith(f"model.path: {folder}/{INDEX}: no index of parameters: {fact}")
    assert told.endswith("; use an intact copy")


def test_an_index_of_gigabytes_is_not_read(folder: Path):
    divide(folder)
    with (folder / INDEX).open("wb") as file:
        file.truncate(4 << 30)  # no block of it is on the disk
    assert refusal(folder) == f"model.path: {folder}/{INDEX}: larger than 64 MB; use an intact copy"


def header(text: str, data: int = 0) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode() + bytes(data)


def describe(shape: list[int], end: int) -> str:
    return json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x10" * 100,
        struct.pack("<Q", (1 << 64) - 1) + b"{}",
        header("{}")[:-1],
        header('{"a":' * 99_999),
        header("[" * 99_999),
        header(describe([1 << 62, 8], 4), 4),
        header(describe([-1], 4), 4),
        header(describe([1 << 40], 4 << 40), 4),
        header(describe([1], 4), 99),
    ],
    ids=[
        *("empty", "noise", "endless", "cut", "nested objects", "nested arrays", "overflow", "negative"),
        *("beyond the file", "hidden bytes"),
    ],
)
def test_a_header_that_does_not_describe_its_file_is_refused(content: bytes, folder: Path):
    (folder / "model.safetensors").write_bytes(content)
    told = refusal(folder)
    assert told.startswith(f"model.path: {folder}/model.safetensors: ")
    assert told.endswith("; use an intact copy")
    assert "\n" not in told


def test_a_header_of_gigabytes_is_not_read(folder: Path):
    path = folder / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 3 << 30))
        file.truncate(4 << 30)
    tracemalloc.start()
    told = refusal(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert told == (
        f"model.path: {path}: its header has 3,221,225,472 bytes; 32 MB are allowed; use an intact copy"
    )
    assert peak < 16 << 20


@given(content=st.binary(max_size=200), is_headed=st.booleans())
def test_any_bytes_are_parameters_or_a_sentence(
    content: bytes, is_headed: bool, tmp_path_factory: pytest.TempPathFactory
):
    folder = tmp_path_factory.mktemp("any")
    framed = struct.pack("<Q", len(content)) + content if is_headed else content
    (folder / "model.safetensors").write_bytes(framed)
    with contextlib.suppress(ConfigError):
        examine_weight_files(folder, "model.path")


# Numbers: what config.json describes is far from what the files hold.


@pytest.mark.parametrize(
    ("settings", "fact"),
    [
        ({"vocab_size": 1 << 40}, "parameters by config.json, 17,600 in the files; check"),
        ({"hidden_size": 1 << 24}, "parameters by config.json, 17,600 in the files; check"),
        ({"num_hidden_layers": 20_000, "layer_types": None}, "20000 layers by config.json, but"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, more than 65536; correct"),
        ({"text_config": {"num_experts": 10**9}}, "num_experts is 1000000000, more than 65536; correct"),
    ],
)
def test_a_config_of_a_giant_is_refused_before_memory_is_taken(
    settings: dict[str, Any], fact: str, folder: Path
):
    change_config(folder, **settings)
    assert fact in refusal(folder)


@pytest.mark.parametrize(
    ("write", "fact"),
    [
        (lambda path: path.write_text("[" * 99_999), "not JSON: maximum recursion depth exceeded"),
        (lambda path: path.write_text('{"a": ' + "9" * 5000 + "}"), "not JSON: Exceeds the limit"),
        (lambda path: path.open("wb").truncate(1 << 30), "larger than 16 MB; use an intact copy"),
        (lambda path: path.write_text('{"model_type": ["llama"]}'), "no model_type; use a transformers"),
    ],
)
def test_a_config_that_is_a_bomb_is_refused(write: Callable[[Path], object], fact: str, folder: Path):
    write(folder / "config.json")
    assert refusal(folder).startswith(f"model.path: {folder}/config.json: {fact}")


@pytest.mark.parametrize(
    "settings",
    [
        {"hidden_act": "evil"},
        {"dtype": "load", "torch_dtype": ["load"]},
        {"num_attention_heads": 0},
        {"num_key_value_heads": 3},
        {"rope_parameters": {"rope_type": "evil"}},
        {"layer_types": ["evil", "evil"]},
        {"text_config": {"quantization_config": {"quant_method": "gptq"}}},
    ],
    ids=str,
)
def test_values_that_make_no_model_are_told_in_a_sentence(settings: dict[str, Any], folder: Path):
    change_config(folder, **settings)
    if "dtype" in settings:
        assert load(folder).model.dtype == torch.float32
    else:
        assert "\n" not in refusal(folder)
