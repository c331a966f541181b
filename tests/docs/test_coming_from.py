"""The tables of other tools' names say what finetooth answers when one of them is written."""

import re
from pathlib import Path

import pytest
from tests.conftest import ROOT

from finetooth.base.errors import ConfigError
from finetooth.config.keys import explain_unknown, find_setting
from finetooth.config.load import load_config

PAGE = (ROOT / "docs" / "coming-from.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE, re.MULTILINE)


def said_of(name: str) -> str:
    """What the table says of a name: the setting that is called so, or the remedy of the error message."""
    setting = find_setting(name)
    if isinstance(setting, str):
        return f"`{setting}`, the same"
    answer = explain_unknown(name)
    return "not available" if "not available" in answer.fact else answer.remedy.removeprefix("write ")


def test_three_tools_are_told_name_by_name():
    assert re.findall(r"^\| (\S+) \| here \|$", PAGE, re.MULTILINE) == ["TRL", "Axolotl", "LLaMA-Factory"]
    assert len(ROWS) > 100


def test_every_row_says_what_the_settings_say():
    assert [(name, said) for name, said in ROWS if said != said_of(name)] == []


def test_no_row_is_a_guess():
    """A name that is unknown would be answered with the nearest key; none of the table is."""
    assert not [name for name, said in ROWS if said.startswith(("did you mean", "the keys here"))]
    assert said_of("datset_name").startswith(("did you mean", "the keys here"))


def test_the_answer_shown_is_the_one_that_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    lines = ["model: {path: ./base}", "data: {train: train.jsonl}", "training:"]
    lines += [
        "  per_device_train_batch_size: 8",
        "  gradient_accumulation_steps: 4",
        "output_dir: runs/first",
    ]
    Path("run.yaml").write_text("\n".join(lines) + "\n")
    with pytest.raises(ConfigError) as caught:
        load_config("run.yaml")
    assert f"```text\n{caught.value}\n```" in PAGE
