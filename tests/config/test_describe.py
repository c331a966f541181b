"""A described config is read back to an equal one, and tells where each value came from."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetooth.config.describe import describe_config, origins_of
from finetooth.config.load import load_config
from finetooth.config.schema import (
    CheckpointsConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    SFTConfig,
    TrainingConfig,
)
from finetooth.config.settings import values_of

DESCRIBED = """\
# Every setting of the run, each with the place where it was set.
model:
  path: ./base  # run.yaml:1
  from_config: null  # default
  tokenizer: null  # default
data:
  train: train.jsonl  # run.yaml:2
  dev: 0.02  # default
  format: auto  # default
  fields: null  # default
  input_join: "\\n\\n"  # default
  template: auto  # default
  template_args: {}  # default
  system: "yes: \\u0007\u00e9"  # run.yaml:2
  loss_on: assistant  # default
  train_reasoning: true  # default
  train_end_token: false  # default
  single_turn: false  # default
  allow_tokens: []  # default
  max_length: 2048  # default
  on_bad_record: error  # default
  on_long_document: drop  # default
  on_duplicate: drop  # default
  on_near_duplicate: keep  # default
  near_duplicate_similarity: 0.85  # default
  on_leak: error  # default
  group_by: prompt  # default
  max_records: null  # default
  cache_dir: null  # default
training:
  num_train_epochs: 3  # default
  max_steps: null  # default
  global_batch_size: 128  # default
  global_batch_tokens: null  # default
  packing: auto  # default
  row_tokens: 16384  # default
  rows_at_once: 1  # default
  recompute: auto  # default
  compile: false  # default
  learning_rate: 0.0001  # command line
  min_learning_rate: 2e-06  # default
  lr_scheduler_type: cosine  # default
  warmup_steps: 0.03  # default
  optimizer: adamw  # default
  weight_decay: 0.01  # default
  adam_beta1: 0.9  # default
  adam_beta2: 0.999  # default
  adam_epsilon: 1e-08  # default
  dropout: 0.0  # default
  max_grad_norm: 1.0  # default
  on_non_finite: stop  # default
  precision: auto  # default
  device: auto  # default
  seed: 42  # default
adapter:
  type: null  # default
  r: 16  # default
  alpha: 32  # default
  rslora: false  # default
  lora_dropout: 0.0  # default
  target_modules: null  # default
  modules_to_save: null  # default
  train_tokens: auto  # default
parallel:
  shard: null  # default
  replicate: null  # default
  sum_gradients: step  # default
  offload_optimizer: false  # default
  timeout: 600  # default
evaluation:
  every: 200  # default
  train_documents: 256  # default
  exact_match: null  # default
  exact_match_records: 64  # default
  max_new_tokens: 256  # default
  best_by: dev_loss  # default
  patience: null  # default
checkpoints:
  every: 200  # default
  keep: 3  # default
  final: auto  # default
  background: true  # default
  stop_deadline: 25  # default
logging:
  every: 1  # default
  spikes: true  # default
  tensorboard: false  # default
  wandb: null  # default
output_dir: "123"  # run.yaml:3
"""


def test_every_value_stands_with_its_origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    text = 'model: {path: ./base}\ndata: {train: train.jsonl, system: "yes: \\aé"}\noutput_dir: "123"\n'
    Path("run.yaml").write_text(text, encoding="utf-8")
    assert describe_config(load_config("run.yaml", ["learning_rate=1e-4"])) == DESCRIBED


def test_values_set_in_python_are_told_from_defaults():
    config = SFTConfig(
        model=ModelConfig(path="b"),
        data=DataConfig(train="t"),
        output_dir="o",
        checkpoints=CheckpointsConfig(keep=4),
    )
    lines = describe_config(config).splitlines()
    assert "  keep: 4  # code" in lines
    assert "  every: 1  # default" in lines


TEXT = st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda text: "\x00" not in text)
TRICKY = st.sampled_from(
    ["null", "true", "1", "1e4", "-", "~", "- a", "a: b", "a # b", "'", '"', "0x1", ".inf", "=", "#"]
)
ANY_TEXT = TEXT | TRICKY
POSITIVE = st.floats(min_value=0, exclude_min=True, allow_infinity=False) | st.integers(1, 10**30)
ARGUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=5,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_description_is_read_back_to_an_equal_config(tmp_path: Path, data: st.DataObject):
    config = SFTConfig(
        model=ModelConfig(path=data.draw(ANY_TEXT), tokenizer=data.draw(st.none() | ANY_TEXT)),
        data=DataConfig(
            train=data.draw(ANY_TEXT),
            dev=data.draw(st.none() | ANY_TEXT | st.floats(0.001, 0.999)),
            system=data.draw(st.none() | ANY_TEXT),
            template_args=data.draw(st.dictionaries(ANY_TEXT, ARGUMENTS, max_size=3)),
        ),
        training=TrainingConfig(
            num_train_epochs=data.draw(POSITIVE),
            learning_rate=data.draw(POSITIVE),
            min_learning_rate=0,
            packing=data.draw(st.sampled_from([True, False, "auto"])),
        ),
        evaluation=EvaluationConfig(every=data.draw(st.integers(min_value=0))),
        output_dir=data.draw(ANY_TEXT),
        origins={"output_dir": data.draw(ANY_TEXT)},
    )
    path = tmp_path / "config.yaml"
    path.write_text(describe_config(config), encoding="utf-8")
    assert load_config(path) == config
    origins = origins_of(path.read_text(encoding="utf-8"))
    assert set(origins) == set(values_of(config))
    assert origins["data.train"] == "code"
    assert origins["data.loss_on"] == "default"
    if config.origins["output_dir"].isascii() and config.origins["output_dir"].isprintable():
        assert origins["output_dir"] == config.origins["output_dir"]


def test_a_place_of_several_lines_stays_on_its_line():
    config = SFTConfig(
        model=ModelConfig(path='a  # "b'),
        data=DataConfig(train="t"),
        output_dir="o",
        origins={"model.path": "a\n  path: x  # y", "output_dir": "b  # c.yaml:3"},
    )
    origins = origins_of(describe_config(config))
    assert origins["model.path"] == "a\\u000a  path: x  # y"
    assert origins["output_dir"] == "b  # c.yaml:3"
