"""Run files are read into configs, or every mistake is told at once and in its place."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetooth.base.errors import ConfigError
from finetooth.config.describe import describe_config
from finetooth.config.keys import SECTIONS, SETTINGS
from finetooth.config.load import MOST_BYTES, REQUIRED_REMEDIES, load_config
from finetooth.config.schema import DataConfig, ModelConfig, SFTConfig, TrainingConfig

SMALLEST = "model: {path: base}\ndata: {train: train.jsonl}\noutput_dir: run\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(text: str, *overrides: str) -> SFTConfig:
    Path("run.yaml").write_text(text, encoding="utf-8")
    return load_config("run.yaml", overrides)


def mistakes(text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(text, *overrides)
    assert caught.value.exit_code == 2
    return caught.value.problems


@pytest.mark.usefixtures("folder")
def test_values_and_their_origins_are_read():
    config = load(
        "model:\n  path: base\ndata:\n  train: train.jsonl\n  dev: dev.jsonl\n"
        "training:\n  learning_rate: 1e-4\nlogging:\noutput_dir: runs/first\n",
        "training.max_steps=7",
        "packing=false",
    )
    assert config == SFTConfig(
        model=ModelConfig(path="base"),
        data=DataConfig(train="train.jsonl", dev="dev.jsonl"),
        training=TrainingConfig(learning_rate=1e-4, max_steps=7, packing=False),
        output_dir="runs/first",
    )
    assert config.origins["model.path"] == "run.yaml:2"
    assert config.origins["training.learning_rate"] == "run.yaml:7"
    assert config.origins["output_dir"] == "run.yaml:9"
    assert config.origins["training.max_steps"] == "command line"
    assert config.origins["training.seed"] == "default"
    assert config.origins.keys() == SETTINGS.keys()


@pytest.mark.usefixtures("folder")
def test_all_mistakes_are_told_by_line_then_what_is_missing_then_the_command_line():
    text = """\
model: {path: ./base}
data:
  max_length: 3.5
training:
  lerning_rate: 1e-4
  learning_rate: "1e-4"
  batch_size: 4
  max_length: 5
  packing: yes
  seed: 1
  seed: 2
  warmup_steps: 1.5
optimizer: {lr: 3}
trainig: {lr: 3, seed: 4}
lora_r: 8
data.train: x
logging: 5
"""
    assert mistakes(text, "every=4", "lr=3", "foo", "keep=2", "checkpoints.keep=1", "data.template=[1") == [
        "run.yaml:3: data.max_length: found the number 3.5; write a whole number at least 2",
        "run.yaml:5: training.lerning_rate: unknown key; did you mean 'learning_rate'?",
        "run.yaml:6: training.learning_rate: found the text '1e-4'; write a number above 0 without quotes",
        "run.yaml:7: training.batch_size: not a name used here; "
        "write training.global_batch_size, the documents per update over all devices",
        "run.yaml:8: training.max_length: stands in the wrong place; write data.max_length",
        "run.yaml:9: training.packing: found the text 'yes'; write true, false or auto",
        "run.yaml:11: seed: stands twice, first in line 10; keep one of them",
        "run.yaml:12: training.warmup_steps: 1.5 is neither a share nor a whole number of steps; "
        "write a share below 1 or a whole number",
        "run.yaml:13: optimizer: stands in the wrong place; write training.optimizer",
        "run.yaml:13: optimizer.lr: not a name used here; write training.learning_rate",
        "run.yaml:14: trainig: unknown key; did you mean 'training'?",
        "run.yaml:14: trainig.lr: not a name used here; write training.learning_rate",
        "run.yaml:15: lora_r: not a name used here; write adapter.r",
        "run.yaml:16: data.train: a dotted key; write train below data:, indented",
        "run.yaml:17: logging: found the number 5; write its keys below it, indented",
        "run.yaml: data.train: missing; name the file with the training records",
        "run.yaml: output_dir: missing; name the folder that the run writes to",
        "command line: every: means several settings; "
        "write evaluation.every, checkpoints.every or logging.every",
        "command line: lr: not a name used here; write training.learning_rate",
        "command line: 'foo' is not KEY=VALUE; write e.g. learning_rate=1e-4",
        "command line: checkpoints.keep: given twice; keep one of them",
        "command line: data.template: not YAML: while parsing a flow sequence, "
        "expected ',' or ']', but got '<stream end>'; mend this line or the one above",
    ]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("text", "overrides", "mistake"),
    [
        (
            SMALLEST.replace("train.jsonl}", "train.jsonl, max_length: 20000}"),
            [],
            "run.yaml:2: training.row_tokens (16384) is below data.max_length (20000); "
            "raise training.row_tokens or lower data.max_length",
        ),
        (
            SMALLEST + "training: {row_tokens: 100}\n",
            [],
            "run.yaml:4: training.row_tokens (100) is below data.max_length (2048); "
            "raise training.row_tokens or lower data.max_length",
        ),
        (
            SMALLEST,
            ["max_length=20000"],
            "command line: training.row_tokens (16384) is below data.max_length (20000); "
            "raise training.row_tokens or lower data.max_length",
        ),
        (
            SMALLEST.replace("path", "tokenizer"),
            [],
            "run.yaml: model: neither model.path nor model.from_config is given; "
            "name a base model's folder as model.path",
        ),
        (
            SMALLEST,
            ["learning_rate='1e-4'"],
            "command line: training.learning_rate: found the text '1e-4'; "
            "write a number above 0 without quotes",
        ),
    ],
)
def test_a_contradiction_stands_at_the_line_of_what_was_given(text: str, overrides: list[str], mistake: str):
    assert mistakes(text, *overrides) == [mistake]


@pytest.mark.usefixtures("folder")
def test_an_override_wins_over_a_mistaken_value_of_the_file():
    assert load(SMALLEST + "training: {seed: x}\n", "seed=3").training.seed == 3


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("data.system=You are: nice # really", "system", "You are: nice # really"),
        ("data.system='7'", "system", "7"),
        ("data.template_args={enable_thinking: false}", "template_args", {"enable_thinking": False}),
        ("fields={prompt: q, response: a}", "fields", {"prompt": "q", "response": "a"}),
        ("dev=null", "dev", None),
        (" dev = 0.1", "dev", 0.1),
    ],
)
def test_an_override_is_read_as_yaml(override: str, key: str, value: object):
    assert getattr(load(SMALLEST, override).data, key) == value


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("content", "mistake"),
    [
        (b"", "run.yaml: empty; write at least model.path, data.train and output_dir"),
        (
            b"- a\n",
            "run.yaml: holds a list, no `key: value` lines; "
            "write sections such as `data:` with their keys below",
        ),
        (
            b"a: 'b\n",
            "run.yaml:2: not YAML: while scanning a quoted scalar, found unexpected end of stream; "
            "mend this line or the one above",
        ),
        (b"a: \xff\n", "run.yaml: byte 3 is not UTF-8; save the file as plain text in UTF-8"),
        (
            b"#" * (MOST_BYTES + 1),
            "run.yaml: larger than a megabyte, so no file of settings; "
            "name the run.yaml; data.train names the records",
        ),
    ],
)
def test_a_file_that_holds_no_settings_is_one_sentence(content: bytes, mistake: str):
    Path("run.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config("run.yaml", ["lr=3"])
    assert caught.value.problems == [mistake]


def test_a_file_that_is_not_there_is_one_sentence(folder: Path):
    with pytest.raises(ConfigError) as caught:
        load_config("run.yaml")
    assert caught.value.problems == ["run.yaml: no such file; check the path"]
    with pytest.raises(ConfigError) as caught:
        load_config(folder)
    assert caught.value.problems == [f"{folder}: a folder; name the run.yaml itself"]


def test_a_file_that_may_not_be_read_is_one_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ConfigError) as caught:
        load_config("run.yaml")
    assert caught.value.problems == ["run.yaml: cannot be read: Permission denied; check its permissions"]


def test_every_required_setting_has_words_for_its_absence():
    assert REQUIRED_REMEDIES.keys() == {key for key, setting in SETTINGS.items() if setting.is_required}


@pytest.mark.usefixtures("folder")
def test_a_byte_order_mark_and_windows_lines_are_read():
    Path("run.yaml").write_bytes(b"\xef\xbb\xbf" + SMALLEST.replace("\n", "\r\n").encode())
    assert load_config("run.yaml").origins["output_dir"] == "run.yaml:3"


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec="utf-8"), max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from([*SETTINGS, *SECTIONS, "batch_size", "adapter", "training.lerning_rate", "zzz.zzz"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(junk=st.dictionaries(KEYS, JUNK, max_size=6), overrides=st.lists(st.tuples(KEYS, JUNK), max_size=2))
def test_whatever_stands_in_a_file_gives_a_config_or_a_config_error(
    folder: Path, junk: dict[str, Any], overrides: list[tuple[str, Any]]
):
    """A config that comes out is described, and its description is read back to an equal one."""
    values: dict[str, Any] = {"model": {"path": "b"}, "data": {"train": "t"}, "output_dir": "o"}
    for key, value in junk.items():
        section, _, name = key.rpartition(".")
        inside = values.setdefault(section, {}) if section else values
        if isinstance(inside, dict):
            inside[name] = value
    path = folder / "run.yaml"
    path.write_text(_write_yaml(values), encoding="utf-8")
    try:
        config = load_config(path, [f"{key}={_write_yaml(value).strip()}" for key, value in overrides])
    except ConfigError as error:
        misplaced = [text for text in error.problems if not text.startswith((str(path), "command line: "))]
    else:
        misplaced = []
        path.write_text(describe_config(config), encoding="utf-8")
        assert load_config(path) == config
    assert misplaced == []


def _write_yaml(value: object) -> str:
    from io import StringIO

    from ruamel.yaml import YAML

    stream = StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = True
    yaml.width = 10**6
    yaml.dump(value, stream)
    return stream.getvalue().removesuffix("...\n")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(content=st.binary(max_size=60) | st.text("ab:-[]{}&*!#|>'\"%@ \n\t0", max_size=40).map(str.encode))
def test_any_bytes_give_a_config_or_a_config_error(folder: Path, content: bytes):
    path = folder / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError):
        load_config(path)


@pytest.mark.usefixtures("folder")
def test_the_junk_of_the_tests_above_reaches_a_valid_config():
    """Negative control: without it, the tests above could see nothing but errors."""
    values = {"model": {"path": "b"}, "data": {"train": "t"}, "output_dir": "o", "training": {"seed": 3}}
    assert load(_write_yaml(values)).training.seed == 3
