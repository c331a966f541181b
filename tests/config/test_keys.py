"""Keys are found, or it is told what to write."""

import re

import pytest

from finetooth.config.keys import SECTIONS, SETTINGS, Unknown, explain_unknown, find_setting
from finetooth.config.other_names import NOT_AVAILABLE, NOT_AVAILABLE_PREFIXES, OTHER_NAMES


@pytest.mark.parametrize("key", SETTINGS)
def test_every_setting_is_found_by_its_dotted_key(key: str):
    assert find_setting(key) == key


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("learning_rate", "training.learning_rate"),
        ("output_dir", "output_dir"),
        ("keep", "checkpoints.keep"),
        (
            "every",
            Unknown(
                "every: means several settings", "write evaluation.every, checkpoints.every or logging.every"
            ),
        ),
        ("model", Unknown("model: a section, not a setting", "write model.NAME=VALUE, e.g. model.path=…")),
        ("lerning_rate", Unknown("lerning_rate: unknown key", "did you mean training.learning_rate?")),
    ],
)
def test_a_bare_key_means_the_only_setting_of_that_name(key: str, found: str | Unknown):
    assert find_setting(key) == found


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (
            "training.lerning_rate",
            Unknown("training.lerning_rate: unknown key", "did you mean 'learning_rate'?"),
        ),
        ("trainin", Unknown("trainin: unknown key", "did you mean 'training'?")),
        (
            "data.lerning_rate",
            Unknown("data.lerning_rate: unknown key", "did you mean training.learning_rate?"),
        ),
        (
            "training.output_dir",
            Unknown("training.output_dir: stands in the wrong place", "write output_dir at the top level"),
        ),
        ("seed", Unknown("seed: stands in the wrong place", "write training.seed")),
        (
            "Batch-Size",
            Unknown(
                "Batch-Size: not a name used here",
                "write training.global_batch_size, the documents per update over all devices",
            ),
        ),
        ("model.lora_r", Unknown("model.lora_r: not a name used here", "write adapter.r")),
        (
            "model.label_smoothing",
            Unknown("model.label_smoothing: not available in this version", "leave it out"),
        ),
        (
            "logging.zzzzzz",
            Unknown("logging.zzzzzz: unknown key", "the keys here are every, spikes, tensorboard, wandb"),
        ),
        (
            "zzzzzz",
            Unknown(
                "zzzzzz: unknown key",
                "the keys here are output_dir, model, data, training, adapter, parallel, evaluation, "
                "checkpoints, logging",
            ),
        ),
    ],
)
def test_an_unknown_key_is_answered_with_what_to_write(key: str, words: Unknown):
    assert explain_unknown(key) == words


def test_no_other_name_is_one_of_ours():
    ours = {name for key in SETTINGS for name in (key, key.rpartition(".")[2])} | set(SECTIONS)
    others = set(OTHER_NAMES) | NOT_AVAILABLE
    assert not ours & others
    assert not [name for name in ours if name.startswith(NOT_AVAILABLE_PREFIXES)]
    assert not set(OTHER_NAMES) & NOT_AVAILABLE
    assert all(name == name.lower() for name in others)


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_every_setting_named_by_a_remedy_exists(name: str):
    named = re.findall(
        r"\b(?:model|data|training|adapter|parallel|evaluation|checkpoints|logging)\.\w+", OTHER_NAMES[name]
    )
    assert OTHER_NAMES[name].startswith(("write ", "leave it out: "))
    assert [key for key in named if key not in SETTINGS] == []
    if OTHER_NAMES[name].startswith("write "):
        assert named or "output_dir" in OTHER_NAMES[name]


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("log_every", "write logging.every, in steps"),
        ("wd", "write training.weight_decay"),
        ("optim", "write training.optimizer: adamw or adamw_8bit"),
        ("bf16", "write training.precision: fp32, bf16, bf16-pure, fp16 or auto"),
        ("pure_bf16", "write training.precision: bf16-pure"),
        ("stochastic_rounding", "write training.precision: bf16-pure, which rounds stochastically"),
        ("grad_norm_clip", "write training.max_grad_norm"),
        ("num_train_steps", "write training.max_steps"),
        ("checkpoint_dir", "write output_dir, at the top level"),
        (
            "ignore_index",
            "leave it out: each token has a loss weight of its own; write data.loss_on to choose",
        ),
        ("wandb_project", "write logging.wandb, the name of a project"),
        ("eval_only", "leave it out: measure with `finetooth eval RUN_OR_MODEL`"),
    ],
)
def test_names_of_other_tools_are_answered(name: str, remedy: str):
    assert explain_unknown(f"training.{name}") == Unknown(f"training.{name}: not a name used here", remedy)
