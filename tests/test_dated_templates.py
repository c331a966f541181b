"""A dated template tells the date of its preparation: when a run is resumed, evaluated or asked again."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tests.small_run import write_run
from tests.small_tokenizer import write_small_tokenizer

from finetooth.base.errors import ConfigError
from finetooth.config.load import load_config
from finetooth.config.schema import SFTConfig
from finetooth.data.preparation import PreparedData, prepare_data
from finetooth.data.records import Message
from finetooth.data.templates.template import encode_prompt
from finetooth.evaluate import evaluate
from finetooth.evaluation.speaker import open_speaker
from finetooth.train import train

DATED = (
    "<|im_start|>system\nToday Date: {{ strftime_now('%d %b %Y') }}<|im_end|>\n"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@contextlib.contextmanager
def day(number: int) -> Iterator[None]:
    """Within it, it is that day of November 2026."""

    class Then(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Then":
            return cls(2026, 11, number, 12, 30, 15, 7)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("finetooth.data.preparation.datetime", Then)
        patch.setattr("finetooth.data.templates.template.datetime", Then)
        yield


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SFTConfig:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FINETOOTH_CACHE", str(tmp_path / "cache"))
    path = write_run(
        tmp_path, data={"template": "auto"}, training={"max_steps": 4}, checkpoints={"every": 2, "keep": 5}
    )
    write_small_tokenizer(tmp_path / "base", chat_template=DATED)
    return load_config(path)


def begins_with(prepared: PreparedData, date: str) -> bool:
    [text] = {prepared.tokenizer.decode(prepared.train.document(0).token_ids.tolist())}
    return text.startswith(f"<|im_start|>system\nToday Date: {date}<|im_end|>")


def test_what_is_prepared_is_used_on_later_days_with_its_date(config: SFTConfig):
    with day(20):
        first = prepare_data(config)
    with day(27):
        later = prepare_data(config)
    assert (first.is_reused, later.is_reused, first.folder) == (False, True, later.folder)
    assert begins_with(first, "20 Nov 2026")
    assert later.template.now == first.template.now == datetime(2026, 11, 20, 12, 30, 15)
    assert later.template.fingerprint == first.template.fingerprint
    prompts = [encode_prompt(prepared.template, [Message("user", "two")]) for prepared in (first, later)]
    assert prompts[0] == prompts[1]


def test_what_is_prepared_anew_tells_the_new_date(config: SFTConfig):
    """Negative control: the date does come from the clock."""
    with day(20):
        first = prepare_data(config)
        fingerprint = first.template.fingerprint
    shutil.rmtree(first.folder)
    with day(27):
        again = prepare_data(config)
    assert begins_with(again, "27 Nov 2026")
    assert again.template.fingerprint != fingerprint


@pytest.mark.parametrize("becomes", ["kept", "lost", "prepared anew for another run"])
def test_a_run_is_resumed_evaluated_and_asked_with_its_date(config: SFTConfig, becomes: str, tmp_path: Path):
    with day(20):
        summary = train(config)
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["template"]["now"] == "2026-11-20T12:30:15"
    expected = (tmp_path / "run" / "final" / "model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "run" / "final")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-000004")
    if becomes != "kept":
        shutil.rmtree(tmp_path / "cache")
    with day(27):
        if becomes == "prepared anew for another run":
            assert begins_with(prepare_data(config), "27 Nov 2026")
        train(config, resume="must")
        assert (tmp_path / "run" / "final" / "model.safetensors").read_bytes() == expected
        assert evaluate("run")["dev_loss"] == pytest.approx(summary["dev_loss"], rel=1e-6)
        speaker = open_speaker("run")
        prompt = encode_prompt(speaker.template, [Message("user", "two")])
    assert speaker.template.tokenizer.decode(prompt).startswith("<|im_start|>system\nToday Date: 20 Nov 2026")


def test_a_run_with_another_date_would_not_be_resumed(config: SFTConfig, monkeypatch: pytest.MonkeyPatch):
    """Negative control: without the date that the run noted, its documents would be others."""
    with day(20):
        train(config)
    shutil.rmtree(Path("cache"))
    monkeypatch.setattr("finetooth.train.told_time", lambda path: None)
    with day(27), pytest.raises(ConfigError, match="template: another than that of"):
        train(config, resume="must")
