"""Adapters change nothing at first, train alone, are what peft computes, and come back from disk."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tests.documents import Documents, gradients, random_documents, save_small_model
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from finetooth.base.devices import DeviceManager
from finetooth.base.errors import ConfigError
from finetooth.batching.collate import Batch, collate
from finetooth.batching.packing import Row
from finetooth.config.schema import AdapterConfig, ModelConfig
from finetooth.data.records import IGNORED_LABEL
from finetooth.model import four_bits
from finetooth.model.adapters import adaptable_layers, read_adapter_config, start_adapter
from finetooth.model.folders import load_folder
from finetooth.model.load import load_policy
from finetooth.model.policy import PolicyModel
from finetooth.model.recompute import Recompute

CPU = DeviceManager("cpu", "fp32")
DOCUMENTS = random_documents(6)
ROWS: tuple[Row, ...] = ((0, 1, 2), (3, 4, 5))
TOKENS = (3, 9)


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return save_small_model(tmp_path / "base", tie_word_embeddings=request.param)


def adapted(
    base: Path, *, token_ids: tuple[int, ...] = (), stirred: bool = True, **settings: Any
) -> PolicyModel:
    """A policy with an adapter; stirred: its parameters are drawn anew, so that it changes something."""
    adapter = AdapterConfig(**{"type": "lora", "r": 4, **settings})
    policy = load_policy(ModelConfig(path=str(base)), devices=CPU, frozen_for=adapter.type)
    policy.adapter = start_adapter(policy.model, adapter, base_name=str(base), token_ids=token_ids, seed=1)
    if stirred:
        stir(policy)
    return policy


def stir(policy: PolicyModel) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.mul_(1 + 0.1 * noise).add_(0.05 * noise)


def batch_of(rows: tuple[Row, ...] = ROWS, documents: Documents = DOCUMENTS, **options: Any) -> Batch:
    return collate(rows, documents, **options)


def trained_names(policy: PolicyModel) -> set[str]:
    return {name for name, parameter in policy.model.named_parameters() if parameter.requires_grad}


KINDS: list[dict[str, Any]] = [
    {"type": "lora"},
    {"type": "lora", "rslora": True, "alpha": 3},
    {"type": "dora"},
    {"type": "lora", "token_ids": TOKENS},
    {"type": "lora", "modules_to_save": ["embed_tokens", "lm_head"], "target_modules": ["q_proj", "up_proj"]},
]


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_a_fresh_adapter_changes_nothing(base: Path, settings: dict[str, Any]):
    plain = load_policy(ModelConfig(path=str(base)), devices=CPU)
    policy = adapted(base, stirred=False, **settings)
    torch.testing.assert_close(policy(batch_of()), plain(batch_of()), rtol=1e-6, atol=0)


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_loss_and_gradients_are_those_of_peft(base: Path, settings: dict[str, Any]):
    """Packed rows through our attention and head, against peft's own forward of each document alone."""
    policy = adapted(base, **settings)
    policy(batch_of()).backward()
    ours = gradients(policy)
    policy.zero_grad()
    assert policy.adapter is not None
    for number in range(6):
        document = DOCUMENTS.document(number)
        ids = torch.from_numpy(document.token_ids.astype(np.int64))[None]
        labels = ids.masked_fill(torch.from_numpy(document.loss_weights)[None] == 0, IGNORED_LABEL)
        mean = policy.adapter.peft(input_ids=ids, labels=labels).loss
        (mean * float(document.loss_weights.sum())).backward()
    theirs = gradients(policy)
    assert ours.keys() == theirs.keys()
    assert {name.removeprefix("model.") for name in ours} == trained_names(policy)
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_the_comparison_of_gradients_notices_an_adapter_that_is_off(base: Path):
    policy = adapted(base)
    with_it = policy(batch_of())
    assert policy.adapter is not None
    with policy.adapter.switched_off():
        assert abs(float(policy(batch_of()) - with_it)) > 1e-3


def test_only_what_the_adapter_adds_is_trained(base: Path):
    policy = adapted(base, token_ids=TOKENS)
    kinds = ("lora_A.default.weight", "lora_B.default.weight", "trainable_tokens_delta.default")
    assert all(name.endswith(kinds) for name in trained_names(policy))
    untied = not policy.model.config.tie_word_embeddings
    assert sum("trainable_tokens_delta" in name for name in trained_names(policy)) == 1 + untied


@pytest.mark.parametrize("token_id", TOKENS)
def test_the_head_learns_the_rows_of_new_tokens(base: Path, token_id: int):
    """Also where embedding and head are two tensors, the row that predicts a stop token is trained."""
    policy = adapted(base, token_ids=TOKENS, stirred=False)
    batch = batch_of()
    before = policy(batch).item()
    (rows,) = [
        parameter
        for name, parameter in policy.model.named_parameters()
        if "trainable_tokens_delta" in name and ("lm_head" in name or policy.model.config.tie_word_embeddings)
    ]
    with torch.no_grad():
        rows[TOKENS.index(token_id)] += 1.0
    assert abs(policy(batch).item() - before) > 1e-3


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_the_reference_is_the_base(base: Path, settings: dict[str, Any]):
    plain = load_policy(ModelConfig(path=str(base)), devices=CPU)
    policy = adapted(base, **settings).train()
    reference = policy.frozen_copy()
    ids = torch.tensor([[5, 7, 3, 9]])
    torch.testing.assert_close(reference(batch_of()), plain(batch_of()), rtol=1e-6, atol=0)
    torch.testing.assert_close(reference(input_ids=ids).logits, plain(input_ids=ids).logits)
    ours, theirs = (model.generate(ids, max_new_tokens=4, do_sample=False) for model in (reference, plain))
    assert torch.equal(ours, theirs)
    assert not reference(batch_of()).requires_grad
    assert list(reference.parameters()) == []
    assert reference.model is policy.model, "it needs no memory of its own"
    assert policy.model.training
    assert abs(float(policy(batch_of()) - plain(batch_of()))) > 1e-3, "the policy has its adapter again"


def test_asking_the_reference_leaves_gradients_alone(base: Path):
    policy = adapted(base, token_ids=TOKENS)
    policy(batch_of()).backward()
    alone = gradients(policy)
    policy.zero_grad()
    loss = policy(batch_of())
    policy.frozen_copy()(batch_of())
    loss.backward()
    assert all(torch.equal(gradient, alone[name]) for name, gradient in gradients(policy).items())
    assert alone.keys() == gradients(policy).keys()


def test_the_reference_is_not_saved(base: Path, tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        adapted(base).frozen_copy().save_pretrained(tmp_path / "copy")
    assert str(caught.value) == f"save_pretrained: it is the base that the policy was made of; copy {base}"


def test_dropout_follows_documents_not_the_layout(base: Path):
    policy = adapted(base, lora_dropout=0.3).train()
    assert policy.drops
    packed, padded = (
        policy(batch_of(rows, dropout_draw=(1, 2))) for rows in (ROWS, ((5,), (0, 4), (3,), (1,), (2,)))
    )
    torch.testing.assert_close(packed, padded, rtol=1e-6, atol=0)
    torch.testing.assert_close(packed, policy(batch_of(dropout_draw=(1, 2))), rtol=0, atol=0)
    other_step, none = policy(batch_of(dropout_draw=(1, 3))), policy(batch_of())
    assert len({round(float(loss), 4) for loss in (packed, other_step, none)}) == 3
    torch.testing.assert_close(policy.eval()(batch_of(dropout_draw=(1, 2))), none, rtol=0, atol=0)


@pytest.mark.parametrize("settings", KINDS, ids=str)
@pytest.mark.parametrize("recompute", ["elementwise", "all"])
def test_recomputing_keeps_the_bits(base: Path, settings: dict[str, Any], recompute: Recompute):
    """Of what is dropped before an adapter, too."""
    policy = adapted(base, lora_dropout=0.3, **settings).train()
    batch, found = batch_of(dropout_draw=(1, 2)), {}
    for each in ("nothing", recompute):
        policy.set_recompute(each)
        policy.zero_grad()
        policy(batch).backward()
        found[each] = gradients(policy)
    assert found["nothing"].keys() == found[recompute].keys()
    assert all(torch.equal(found["nothing"][name], found[recompute][name]) for name in found[recompute])


def test_layers_and_residual_outputs_drop_apart(base: Path):
    """The streams of two adapted layers, and of the residual outputs, are not the same."""
    policy = adapted(base, lora_dropout=0.5).train()
    policy.set_dropout(0.5)
    starts = [module._first_group for module in policy.modules() if type(module).__name__ == "AdapterDropout"]
    assert len(set(starts)) == len(starts) == 14
    assert min(starts) > 10**15, "far behind the residual outputs"
    assert min(b - a for a, b in zip(sorted(starts), sorted(starts)[1:], strict=False)) > 10**9


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_it_comes_back_from_disk_and_peft_loads_it(base: Path, tmp_path: Path, settings: dict[str, Any]):
    policy = adapted(base, **settings)
    policy.save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[5, 7, 3, 9, 1]])
    logits = policy(input_ids=ids).logits
    ours = load_policy(ModelConfig(path=str(tmp_path / "adapter")), devices=CPU)
    assert torch.equal(ours(input_ids=ids).logits, logits)
    assert torch.equal(ours(batch_of()), policy(batch_of()))
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(plain, tmp_path / "adapter")
    torch.testing.assert_close(theirs(input_ids=ids).logits, logits, rtol=1e-5, atol=1e-6)


def test_an_adapter_of_a_grown_vocabulary_comes_back(base: Path, tmp_path: Path):
    policy = load_policy(ModelConfig(path=str(base)), devices=CPU)
    policy.model.resize_token_embeddings(67, mean_resizing=False)
    adapter = AdapterConfig(type="lora", r=2)
    policy.adapter = start_adapter(policy.model, adapter, base_name=str(base), token_ids=(64, 66))
    stir(policy)
    policy.save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[5, 64, 66, 2]])
    loaded = load_policy(ModelConfig(path=str(tmp_path / "adapter")), devices=CPU)
    known = [*range(65), 66]  # nobody trains 65, which is between two new tokens
    assert torch.equal(loaded(input_ids=ids).logits[..., known], policy(input_ids=ids).logits[..., known])


def test_layers_stored_as_gpt2_does_are_adapted(tmp_path: Path):
    config = GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    plain = load_policy(ModelConfig(path=str(tmp_path / "base")), devices=CPU)
    assert adaptable_layers(plain.model) == ["c_attn", "c_fc", "c_proj"]
    policy = adapted(tmp_path / "base", token_ids=TOKENS)
    policy.save_pretrained(tmp_path / "adapter")
    loaded = load_policy(ModelConfig(path=str(tmp_path / "adapter")), devices=CPU)
    assert torch.equal(loaded(batch_of()), policy(batch_of()))


def test_a_frozen_base_lies_in_the_type_it_computes_in(base: Path):
    devices = DeviceManager("cpu", "bf16")
    policy = load_policy(ModelConfig(path=str(base)), devices=devices, frozen_for="lora")
    policy.adapter = start_adapter(policy.model, AdapterConfig(type="lora"), base_name="x", token_ids=TOKENS)
    dtypes = {(p.requires_grad, p.dtype) for p in policy.parameters()}
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}
    with devices.autocast():
        policy(batch_of()).backward()
    assert {gradient.dtype for gradient in gradients(policy).values()} == {torch.float32}


def test_names_that_the_model_does_not_have(base: Path):
    with pytest.raises(ConfigError) as caught:
        adapted(
            base,
            target_modules=["q_proj", "lm_head", "query"],
            modules_to_save=["q_proj", "embeddings", "norm"],
        )
    layers = "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    lines = str(caught.value).split("\n")
    assert lines[:2] == [
        f"adapter.target_modules: {name}: no linear layer before the head; the model has {layers}"
        for name in ("lm_head", "query")
    ]
    assert (
        lines[2]
        == "adapter.modules_to_save: q_proj: has an adapter already; name it in one of the two settings"
    )
    assert lines[3].startswith("adapter.modules_to_save: embeddings: no module; the model has 0, 1, act_fn, ")
    assert len(lines) == 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved adapter, its base beside it."""
    base = save_small_model(tmp_path / "base")
    adapted(base, token_ids=TOKENS).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def refusal(folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_policy(ModelConfig(path=str(folder)), devices=CPU)
    return str(caught.value).replace(str(folder.parent), "…")


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_parameters_that_do_not_belong_are_named(folder: Path):
    tensors = load_file(folder / "adapter_model.safetensors")
    first, second, third = sorted(tensors)[:3]
    del tensors[first]
    tensors[second] = tensors[second][:1].clone()
    tensors[third] = torch.full_like(tensors[third], torch.nan)
    tensors["extra"] = torch.zeros(1)
    save_file(tensors, folder / "adapter_model.safetensors")
    place, remedy = (
        "model.path: …/adapter/adapter_model.safetensors: 1 parameters",
        "use an intact adapter and the base it was trained on",
    )
    assert refusal(folder).split("\n") == [
        f"{place} are missing: {first}; {remedy}",
        f"{place} have no place in the adapter: extra; {remedy}",
        f"{place} have another shape: {second}; {remedy}",
        f"{place} hold values that are not finite: {third}; {remedy}",
    ]


def test_a_pickle_beside_it_is_never_read(folder: Path):
    (folder / "adapter_model.safetensors").unlink()
    torch.save({}, folder / "adapter_model.bin")
    assert refusal(folder) == (
        "model.path: …/adapter/adapter_model.safetensors: no such file; use an intact adapter in safetensors"
    )


def test_what_its_config_names_is_not_imported(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.import_module", lambda *names: pytest.fail(f"imported {names}"))
    edit_config(folder, auto_mapping={"base_model_class": "Canary", "parent_library": "canary"})
    assert read_adapter_config(folder, place="here").auto_mapping is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3', base '…/base'; {lora}"),
        ({"base_model_name_or_path": None}, "peft_type 'LORA', base None; {lora}"),
        (
            {"lora_bias": True, "layer_replication": [[0, 1]]},
            "layer_replication, lora_bias: not what finetooth computes; "
            "merge the adapter with the tool that made it",
        ),
        ({"use_dora": True, "layers_pattern": "x"}, "{first_line}; use an intact copy"),
    ],
)
def test_another_kind_of_adapter_is_refused(folder: Path, changes: dict[str, Any], told: str):
    edit_config(folder, **changes)
    words = {
        "lora": "use an adapter of LoRA or DoRA that names its base",
        "first_line": "When `layers_pattern` is specified, `layers_to_transform` must also be specified",
    }
    assert refusal(folder) == f"model.path: …/adapter/adapter_config.json: {told.format(**words)}"


def test_an_adapter_that_does_not_fit_its_base(folder: Path):
    edit_config(folder, r=-1)
    fact = "`r` should be a positive integer value but the value passed is -1"
    assert refusal(folder) == f"model.path: …/adapter: {fact}; use the base that it was trained on"


def test_a_config_that_is_no_json(folder: Path):
    (folder / "adapter_config.json").write_text("{")
    assert refusal(folder) == "model.path: …/adapter/adapter_config.json: not JSON; use an intact copy"


def test_a_base_that_is_not_there_is_named(folder: Path):
    edit_config(folder, base_model_name_or_path="./nowhere")
    assert refusal(folder) == (
        "model.path: base of …/adapter: ./nowhere: no such folder; "
        "name an existing folder or a hub repository"
    )


def test_an_adapter_on_an_adapter(folder: Path):
    edit_config(folder, base_model_name_or_path=str(folder))
    assert refusal(folder) == (
        "model.path: …/adapter: its base …/adapter is an adapter as well; merge that one first"
    )


def test_a_model_with_an_adapter_beside_it_is_not_loaded_as_a_model(folder: Path):
    (folder.parent / "base" / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError) as caught:
        load_folder(str(folder.parent / "base"), "model.path")
    assert str(caught.value) == (
        f"model.path: {folder.parent}/base holds an adapter; "
        "name the folder of a model; an adapter is read from a folder on this machine"
    )


bitsandbytes = pytest.mark.skipif(
    not transformers.utils.is_bitsandbytes_available(), reason="bitsandbytes is not installed"
)


def four_bit_policy(folder: Path) -> PolicyModel:
    base = save_small_model(folder / "base", hidden_size=64, intermediate_size=128, head_dim=16)
    return adapted(base, type="qlora")


@bitsandbytes
def test_a_base_in_four_bits_learns_as_peft_says(tmp_path: Path):
    policy = four_bit_policy(tmp_path)
    kinds = {type(p).__name__ for name, p in policy.model.named_parameters() if "base_layer" in name}
    assert kinds == {"Params4bit"}
    policy(batch_of()).backward()
    ours = gradients(policy)
    assert {name.removeprefix("model.") for name in ours} == trained_names(policy)
    policy.zero_grad()
    ids = torch.from_numpy(DOCUMENTS.document(0).token_ids.astype(np.int64))[None]
    theirs = policy.model(input_ids=ids).logits
    ours_alone = policy(input_ids=ids).logits
    torch.testing.assert_close(theirs, ours_alone)


@bitsandbytes
def test_gradients_of_four_bits_are_the_same_after_an_evaluation(tmp_path: Path):
    policy = four_bit_policy(tmp_path).train()
    policy(batch_of()).backward()
    before = copy.deepcopy(gradients(policy))
    policy.zero_grad()
    policy.eval()
    with torch.no_grad():
        policy(batch_of())
        policy.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=2)
    policy.train()
    policy(batch_of()).backward()
    assert all(torch.equal(gradient, before[name]) for name, gradient in gradients(policy).items())
    name = "support_avx512bf16_for_cpu"
    packing = [getattr(module, name) for module in policy.modules() if hasattr(module, name)]
    assert packing == [False] * 14


@bitsandbytes
def test_parameters_of_four_bits_are_counted_as_parameters(tmp_path: Path):
    policy = four_bit_policy(tmp_path)
    plain = load_policy(ModelConfig(path=str(tmp_path / "base")), devices=CPU)
    assert policy.num_parameters() == plain.num_parameters() + policy.num_parameters(trained=True)


def test_without_bitsandbytes_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(four_bits.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        four_bit_policy(tmp_path)
    assert str(caught.value) == "adapter.type: qlora needs bitsandbytes; pip install 'finetooth[qlora]'"
