"""Files that are hostile, damaged, or of no model of transformers: one sentence each; nothing runs."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.documents import save_small_model
from tests.legacy_systems import configurable_file, per_head_file, simple_file
from transformers import AutoModelForCausalLM

from finetooth.base.errors import ConfigError
from finetooth.config.schema import ModelConfig
from finetooth.model.load import load_model

BELONG = "check that file and settings belong together"
INTACT = "use an intact copy"


def refusal(path: Path, **model: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_model(ModelConfig(path=str(path), tokenizer="unused", **model), place="model.path")
    (problem,) = caught.value.problems
    assert problem.startswith(f"model.path: {path}: ")
    return problem.removeprefix(f"model.path: {path}: ")


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A ConfigurableGPT's file in which something is otherwise."""
    configurable_file(path)
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda c: c["model"].pop("final_norm.weight"),
            f"1 tensors are missing: final_norm.weight; {BELONG}",
        ),
        (
            lambda c: c["model"].update(extra=torch.zeros(2)),
            f"1 tensors are unexpected: extra; {BELONG}",
        ),
        (
            lambda c: c["model"].update({"blocks.0.ffn.w_out.weight": torch.zeros(16, 23)}),
            "1 tensors have another shape than the settings say: "
            f"blocks.0.ffn.w_out.weight (16, 23) instead of (16, 24); {BELONG}",
        ),
        (
            lambda c: c["model"]["final_norm.weight"].fill_(float("nan")),
            f"1 tensors hold values that are not finite: final_norm.weight; {BELONG}",
        ),
        (
            lambda c: c["model"].update({"final_norm.weight": torch.ones(16, dtype=torch.int64)}),
            f"1 tensors are no floating-point numbers: final_norm.weight; {BELONG}",
        ),
        (
            lambda c: c["model_args"].update(vocab_size=300),
            "model_args: vocab_size is the number 300, and token_embeddings.weight has 330 rows; " + INTACT,
        ),
        (
            lambda c: c["model_args"].update(weight_tying=True),
            "token_embeddings.weight and lm_head.weight differ, and the settings say that they are one; "
            + INTACT,
        ),
        (
            lambda c: c["model"].update(
                {
                    f"blocks.{layer}.attn.rope.{name}_cached": torch.ones(32, 2)
                    for layer in (0, 1)
                    for name in ("cos", "sin")
                }
            ),
            "4 tensors differ from what the settings say: blocks.0.attn.rope.cos_cached, "
            "blocks.1.attn.rope.cos_cached, blocks.0.attn.rope.sin_cached, "
            f"blocks.1.attn.rope.sin_cached; {BELONG}",
        ),
        (
            lambda c: c["model_args"].update(n_layer=10**6),
            f"model_args says 1000000 layers of 4 heads, too many for 17 tensors; {INTACT}",
        ),
        (
            lambda c: c["model_args"].update(n_layer=-1),
            "model_args: n_layer is the number -1; it must be a whole number above 0",
        ),
        (
            lambda c: c["model_args"].pop("norm_eps"),
            "model_args: no norm_eps; it must be a number above 0",
        ),
        (lambda c: c["model_args"].pop("bias"), f"model_args: no bias; {INTACT}"),
        (
            lambda c: c["model_args"].update(n_head=3),
            f"model_args: 16 features cannot be shared out among 3 heads; {INTACT}",
        ),
        (
            lambda c: c["model_args"].update(num_key_value_heads=3),
            f"model_args: 4 heads cannot share 3 keys; {INTACT}",
        ),
        (
            lambda c: c["model_args"].update(n_head=16, num_key_value_heads=16),
            f"model_args: heads of 1 features cannot rotate in pairs; {INTACT}",
        ),
        (
            lambda c: c["model_args"].update(normalization="layernorm"),
            "no architecture of transformers that finetooth supports computes normalization layernorm, "
            "norm_position pre, position_encoding rope, ffn_type swiglu, activation gelu, "
            "attention multi-head together; use a base model with another architecture",
        ),
        (
            lambda c: c["model_args"].update(scale=float("nan")),
            "its setting scale is neither number, text, list nor mapping; save it without",
        ),
        (
            lambda c: c["model"].update({"module.lm_head.weight": torch.zeros(330, 16)}),
            f"lm_head.weight is in it twice, with and without _orig_mod. or module.; {INTACT}",
        ),
        (
            lambda c: c["model"].update(step=3),
            f"1 entries of its state dict are no tensors: step; {BELONG}",
        ),
        (
            lambda c: c["model"].pop("token_embeddings.weight"),
            f"there is no matrix token_embeddings.weight in model; {INTACT}",
        ),
        (
            lambda c: c.pop("model_args"),
            "its keys (model, optimizer, iter_num, best_val_loss, config) are those of no layout that "
            "finetooth reads: configurable-gpt (model, model_args), per-head-gpt (model_state_dict, cfg), "
            "simple-llama (model_state_dict, config); save the parameters alone, and name their config.json",
        ),
    ],
)
def test_what_does_not_fit_is_told_in_a_sentence(
    change: Callable[[dict[str, Any]], object], told: str, tmp_path: Path
):
    assert refusal(changed(tmp_path / "ckpt.pt", change)) == told


def test_every_kind_of_misfit_is_told_at_once(tmp_path: Path):
    def change(content: dict[str, Any]) -> None:
        content["model"]["head.weight"] = content["model"].pop("lm_head.weight")

    path = changed(tmp_path / "ckpt.pt", change)
    with pytest.raises(ConfigError) as caught:
        load_model(ModelConfig(path=str(path), tokenizer="unused"), place="model.path")
    told = [problem.split(": ", 2)[2] for problem in caught.value.problems]
    assert told == [
        f"1 tensors are missing: lm_head.weight; {BELONG}",
        f"1 tensors are unexpected: head.weight; {BELONG}",
    ]


def test_compressed_keys_are_no_llama(tmp_path: Path):
    simple_file(tmp_path / "ckpt.pt", use_mla=True)
    assert refusal(tmp_path / "ckpt.pt") == (
        "no architecture of transformers that finetooth supports computes use_mla True, "
        "use_lora False together; use a base model with another architecture"
    )


class Canary:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


def test_nothing_in_a_file_is_run(tmp_path: Path):
    mark, path = tmp_path / "ran", tmp_path / "ckpt.pt"
    torch.save({"model": {}, "model_args": Canary(mark)}, path)
    assert refusal(path) == (
        f"it holds an object of '{os.system.__module__}.system', which is no tensor and no plain value; "
        "save it without that object"
    )
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists(), "the canary sings where pickles are run"


def test_what_is_no_file_of_torch_is_told(tmp_path: Path):
    path = tmp_path / "ckpt.pt"
    assert refusal(path) == "no such file; name a file that torch.save wrote"
    path.write_text("Hello.")
    assert refusal(path) == "not a file of torch.save, or damaged; copy or save it again"
    torch.save([1, 2], path)
    assert refusal(path) == f"it holds no parameters by name; {INTACT}"


def test_a_state_dict_of_transformers_names_needs_a_config(tmp_path: Path):
    save_small_model(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    folder = tmp_path / "SFT_step_5"
    folder.mkdir()
    torch.save({f"module.{name}": tensor for name, tensor in model.state_dict().items()}, folder / "model.pt")
    path, config = folder / "model.pt", str(tmp_path / "base" / "config.json")
    assert refusal(path) == (
        "a file of parameters alone, and no config.json beside it; "
        "put that of its base there, or name it as model.from_config"
    )
    for settings in (
        ModelConfig(path=str(path), tokenizer="unused", from_config=config),
        ModelConfig(path=str(folder)),
    ):
        read = load_model(settings, place="model.path").state_dict()
        assert all(torch.equal(read[name], tensor) for name, tensor in model.state_dict().items())
        (folder / "config.json").write_bytes(Path(config).read_bytes())
    torch.save({**model.state_dict(), "extra": torch.zeros(1)}, path)
    assert refusal(path) == f"1 tensors are unexpected: extra; {BELONG}"
    torch.save({name: t for name, t in model.state_dict().items() if name != "model.norm.weight"}, path)
    assert refusal(path) == f"1 tensors are missing: model.norm.weight; {BELONG}"


def test_settings_in_the_file_and_beside_it_contradict_each_other(tmp_path: Path):
    per_head_file(tmp_path / "ckpt.pt")
    told = refusal(tmp_path / "ckpt.pt", from_config="config.json")
    assert told == "it holds settings of its own; leave model.from_config out"


def test_the_unsupported_checkpoint_is_refused(shared: Path):
    path = shared / "checkpoints" / "configurable_gpt_unsupported" / "ckpt.pt"
    assert "normalization layernorm, norm_position pre, position_encoding rope, ffn_type swiglu" in refusal(
        path
    )


def test_an_origin_that_others_wrote_is_told(tmp_path: Path):
    per_head_file(tmp_path / "ckpt.pt")
    model = load_model(ModelConfig(path=str(tmp_path / "ckpt.pt"), tokenizer="unused"), place="model.path")
    for entry in (
        {"layout": "of somebody"},
        {"layout": "per-head-gpt", "settings": "no JSON", "constants": []},
        {"layout": "per-head-gpt", "settings": "[]", "constants": []},
        {**model.config.finetooth_legacy, "constants": ["other"]},
        {
            **model.config.finetooth_legacy,
            "settings": model.config.finetooth_legacy["settings"].replace("2", "1"),
        },
    ):
        model.config.finetooth_legacy = entry
        model.save_pretrained(tmp_path / "folder")
        with pytest.raises(ConfigError) as caught:
            load_model(ModelConfig(path=str(tmp_path / "folder")), place="model.path")
        assert str(caught.value) == (
            "model.path: finetooth_legacy in config.json is not what finetooth writes; leave the entry out"
        )


def test_a_bias_without_a_place_is_told(tmp_path: Path):
    per_head_file(tmp_path / "ckpt.pt")
    model = load_model(ModelConfig(path=str(tmp_path / "ckpt.pt"), tokenizer="unused"), place="model.path")
    with torch.no_grad():
        dict(model.named_parameters())["transformer.h.1.attn.c_attn.bias"][3] = 1
    model.save_pretrained(tmp_path / "folder")
    with pytest.raises(ConfigError) as caught:
        load_model(ModelConfig(path=str(tmp_path / "folder")), place="model.path")
    assert str(caught.value) == (
        "model.path: transformer.h.1.attn.c_attn.bias is not zero, and the layout per-head-gpt has no "
        "place for it; take finetooth_legacy out of config.json, which gives up the way back"
    )
