"""Secrets of the environment appear in no output of a run, of whatever command."""

from pathlib import Path

import pytest
from tests.small_run import run_process, write_run
from tests.test_train import run_without_network

CANARIES = {
    "HF_TOKEN": "hf_canary0aaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "WANDB_API_KEY": "canary1-0123456789abcdef0123456789abcdef",
    "AWS_SECRET_ACCESS_KEY": "canary2/secret+access",
    "DATABASE_PASSWORD": "canary3 with spaces",
}


def holding(folder: Path, text: str) -> list[str]:
    """The files below a folder that hold a text."""
    return [str(path) for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


@pytest.mark.slow
def test_no_output_holds_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, secret in CANARIES.items():
        monkeypatch.setenv(name, secret)
    monkeypatch.setenv("FINETOOTH_CACHE", str(tmp_path / "cache"))
    write_run(tmp_path, evaluation={"exact_match": "plain", "exact_match_records": 2})
    longer = ("data.max_length=256", "row_tokens=256")
    given = (
        "train",
        "run.yaml",
        "max_steps=3",
        *longer,
        f"data.system=my key is {CANARIES['WANDB_API_KEY']}",
    )
    said = run_without_network(tmp_path, "train", "run.yaml")
    failed = run_process("train", "run.yaml", "no.such=setting", folder=tmp_path)
    assert (said[0], failed[0]) == (0, 2)
    assert said[2:] == ("", ""), "a whole run, and no connection was tried"
    environment = run_process("env", folder=tmp_path), run_process("env", "--json", folder=tmp_path)
    for secret in CANARIES.values():
        assert holding(tmp_path, secret) == []
        assert not any(secret in text for _, *texts in (said, failed, *environment) for text in texts)
    assert run_process(*given, "output_dir=given", folder=tmp_path)[0] == 0
    environment = (tmp_path / "given" / "environment.json").read_text()
    assert CANARIES["WANDB_API_KEY"] not in environment
    assert "data.system=my key is $WANDB_API_KEY" in environment
    assert holding(tmp_path / "given", CANARIES["WANDB_API_KEY"]), "a setting that is trained stays as it is"
