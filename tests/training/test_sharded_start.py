"""Where the ranks share the parameters, each reads only its part, and trains what is loaded whole."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.ranks import on_ranks
from tests.small_run import write_base, write_run

from finetooth.base.devices import DeviceManager, peak_resident_bytes
from finetooth.base.distributed import Ranks
from finetooth.base.errors import ConfigError
from finetooth.config.load import load_config
from finetooth.config.schema import ModelConfig, SFTConfig
from finetooth.data.preparation import prepare_data
from finetooth.model.load import load_policy
from finetooth.model.start import start_policy
from finetooth.training.parallel import distribute, whole
from finetooth.training.sharded_start import read_sharded, start_sharded
from finetooth.training.trainer import SFTTrainer

CPU = DeviceManager("cpu", "fp32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    write_run(folder, num_records=10, parallel={"shard": "all"}, training={"dropout": 0.1})
    write_base(folder / "untied", tie_word_embeddings=False)
    write_base(folder / "broken", tie_word_embeddings=False)
    return folder


def config_of(folder: Path, base: str) -> SFTConfig:
    return load_config(
        folder / "run.yaml", [f"model.path={folder / base}", f"data.train={folder / 'train.jsonl'}"]
    )


def start_both_ways(ranks: Ranks, folder: Path, base: str) -> tuple[bool, list[str], dict[str, int]]:
    """Whether tensors and losses are those of a policy loaded whole, and the numbers this rank holds."""
    config = config_of(folder, base)
    prepared = prepare_data(config)
    sharded = start_sharded(config, prepared.template, checkpoint=None, ranks=ranks, devices=CPU)
    assert sharded is not None
    policy, tokens = sharded
    expected, expected_tokens = start_policy(config, prepared.template, devices=CPU)
    assert tokens == expected_tokens
    assert policy.why_not_packed == expected.why_not_packed
    tensors = {**dict(policy.named_parameters()), **dict(policy.named_buffers())}
    wanted = {**dict(expected.named_parameters()), **dict(expected.named_buffers())}
    assert tensors.keys() == wanted.keys()
    differing = [name for name in wanted if not torch.equal(whole(tensors[name]), wanted[name])]
    held = sum(parameter.to_local().numel() for parameter in policy.parameters())  # type: ignore[attr-defined]
    losses = []
    for each, output in ((policy, "a"), (expected, "b")):
        trainer = SFTTrainer(
            replace(config, output_dir=str(folder / f"{base}-{output}")),
            policy=each,
            train=prepared.train_documents,
            dev=prepared.dev,
            template=prepared.template,
            devices=CPU,
            ranks=ranks,
        )
        losses.append([line.get("loss") for line in trainer.train().history])
    assert losses[0] == losses[1]
    return differing == [], differing, {"held": held, "all": sum(p.numel() for p in expected.parameters())}


@pytest.mark.slow
@pytest.mark.parametrize("base", ["base", "untied"])
def test_a_policy_read_in_parts_is_the_one_read_whole_and_trains_to_the_same_bits(folder: Path, base: str):
    results = on_ranks(start_both_ways, folder, base, world_size=2)
    for is_equal, differing, numbers in results:
        assert is_equal, differing
        assert numbers["held"] <= 0.6 * numbers["all"]


def grown_bytes(ranks: Ranks, folder: Path, is_sharded: bool) -> int:
    """By how much the most memory that this process ever held has grown when it has its part."""
    config = config_of(folder, "large")
    before = peak_resident_bytes()
    if is_sharded:
        parallel, name = config.parallel, str(folder / "large")
        assert read_sharded(name, ranks=ranks, parallel=parallel, devices=CPU) is not None
    else:
        policy = load_policy(config.model, devices=CPU)
        distribute(policy, ranks, parallel=config.parallel, devices=CPU)
    return peak_resident_bytes() - before


@pytest.mark.slow
def test_no_rank_ever_holds_the_whole_model(folder: Path):
    """Loading it whole and dividing it then is the negative control.

    Pages of the file count while they are read: a rank has its part twice for a moment.
    """
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 6}
    write_base(folder / "large", **sizes)
    num_bytes = (folder / "large" / "model.safetensors").stat().st_size
    in_parts, whole_first = (
        on_ranks(grown_bytes, folder, is_sharded, world_size=2) for is_sharded in (True, False)
    )
    assert max(in_parts) < 1.5 * num_bytes < 1.8 * num_bytes < min(whole_first), (in_parts, whole_first)


def start_refused(ranks: Ranks, folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        start_sharded(
            config_of(folder, "broken"),
            prepare_data(config_of(folder, "broken")).template,
            checkpoint=None,
            ranks=ranks,
            devices=CPU,
        )
    return str(caught.value)


def test_a_value_that_is_not_finite_is_told_by_every_rank(folder: Path):
    policy = load_policy(ModelConfig(path=str(folder / "untied")), devices=CPU)
    with torch.no_grad():
        policy.model.get_parameter("model.layers.1.mlp.up_proj.weight")[0, 0] = torch.inf
    policy.save_pretrained(folder / "broken")
    fact = f"{folder / 'broken'}: model.layers.1.mlp.up_proj.weight holds values that are not finite"
    assert on_ranks(start_refused, folder, world_size=2) == [f"model.path: {fact}; use an intact copy"] * 2


def which_are_read_whole(ranks: Ranks, folder: Path) -> list[bool]:
    """Of a run that begins in each of these ways."""
    config = config_of(folder, "base")
    template = prepare_data(config).template
    base = folder / "base"
    drawn = ModelConfig(from_config=str(base / "config.json"), tokenizer=str(base))
    fresh = replace(config, model=drawn)
    replicated = replace(config, parallel=replace(config.parallel, shard=None))
    grown = replace(template, added_tokens=("<new>",))
    renamed = replace(config, model=replace(config.model, path=str(folder / "renamed")))
    cases = (
        (config, template),
        (fresh, template),
        (replicated, template),
        (config, grown),
        (renamed, template),
    )
    return [
        start_sharded(each, used, checkpoint=None, ranks=ranks, devices=CPU) is None for each, used in cases
    ]


def test_what_cannot_be_read_in_parts_is_read_whole(folder: Path):
    shutil.copytree(folder / "base", folder / "renamed")
    tensors = load_file(folder / "base" / "model.safetensors")
    moved = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(moved, folder / "renamed" / "model.safetensors", {"format": "pt"})
    assert on_ranks(which_are_read_whole, folder, world_size=2) == [[False, True, True, True, True]] * 2
