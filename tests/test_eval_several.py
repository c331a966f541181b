"""`eval` of several targets: runs, checkpoints and models side by side, each as it is measured alone."""

import gc
import json
import shutil
import weakref
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
from tests.small_run import write_base, write_run
from tests.small_tokenizer import write_small_tokenizer
from typer.testing import CliRunner, Result

from finetooth.cli import app
from finetooth.model.policy import PolicyModel

EXAM = {"every": 2, "exact_match": "plain", "exact_match_records": 2, "max_new_tokens": 6}


def command(*arguments: str, columns: int = 80) -> Result:
    environment = {"COLUMNS": str(columns), "NO_COLOR": "1"}
    return CliRunner().invoke(app, arguments, prog_name="finetooth", env=environment)


def figures(*arguments: str) -> dict[str, Any]:
    result = command("eval", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def step(number: int, run: str = "run") -> str:
    return f"{run}/checkpoints/step-{number:06d}"


def dev_losses(run: str) -> dict[int, float]:
    """What a run measured itself, by step."""
    lines = map(json.loads, Path(run, "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["dev_loss"] for line in lines if "dev_loss" in line}


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a run in `run/`, one of an adapter in `lora/`, and another model in `other/`."""
    folder = tmp_path_factory.mktemp("several")
    with chdir(folder):
        write_run(folder, evaluation=EXAM, checkpoints={"every": 2, "keep": 9}, training={"max_steps": 6})
        write_base(folder / "other", seed=5)
        assert command("train", "run.yaml").exit_code == 0
        adapter = ["adapter.type=lora", "output_dir=lora", "max_steps=4", "template=six-token"]
        result = command("train", "run.yaml", *adapter)
        assert result.exit_code == 0, result.stderr
        yield folder


def test_each_is_measured_as_it_is_alone_and_in_order():
    names = ["other", step(2), "run", "base"]
    together = figures(*names, "max_new_tokens=4")
    assert [each["target"] for each in together["targets"]] == names
    for name, measured in zip(names, together["targets"], strict=True):
        assert measured == figures(name, "--config", "run/config.yaml", "max_new_tokens=4")


def test_a_checkpoint_has_the_loss_that_training_measured_then():
    measured = figures(*map(step, (2, 4, 6)), "run/checkpoints/best")["targets"]
    own = dev_losses("run")
    for number, each in zip((2, 4, 6), measured, strict=False):
        assert each["dev_loss"] == pytest.approx(own[number], rel=1e-6)
    assert measured[3]["dev_loss"] == min(each["dev_loss"] for each in measured)
    assert len({each["dev_loss"] for each in measured[:3]}) == 3, "each has its own parameters"


def test_a_checkpoint_alone_takes_the_settings_of_its_run():
    assert figures(step(2))["dev_loss"] == pytest.approx(dev_losses("run")[2], rel=1e-6)
    assert not Path(step(2), "samples").exists()


def test_checkpoints_of_an_adapter_have_the_rows_of_new_tokens():
    measured = figures("base", step(2, "lora"), "lora", "--config", "lora/config.yaml")["targets"]
    own = dev_losses("lora")
    for number, each in zip((0, 2, 4), measured, strict=True):
        assert each["dev_loss"] == pytest.approx(own[number], rel=1e-6)


def test_a_checkpoint_of_a_run_that_goes_on_is_measured(tmp_path: Path):
    shutil.copytree("run", tmp_path / "run", symlinks=True)
    shutil.rmtree(tmp_path / "run" / "final")
    measured = figures(step(4, str(tmp_path / "run")))
    assert measured["dev_loss"] == pytest.approx(dev_losses("run")[4], rel=1e-6)


def test_records_are_prepared_once_and_policies_loaded_one_after_the_other(monkeypatch: pytest.MonkeyPatch):
    from finetooth.evaluate import load_target
    from finetooth.evaluation.judging import prepare_data

    policies: list[weakref.ref[PolicyModel]] = []
    prepared: list[object] = []

    def load(*arguments: Any, **keywords: Any) -> PolicyModel:
        assert all(policy() is None for policy in policies), "the one before is still held"
        policy = load_target(*arguments, **keywords)
        policies.append(weakref.ref(policy))
        return policy

    def prepare(*arguments: Any, **keywords: Any) -> Any:
        prepared.append(arguments)
        return prepare_data(*arguments, **keywords)

    monkeypatch.setattr("finetooth.evaluate.load_target", load)
    monkeypatch.setattr("finetooth.evaluation.judging.prepare_data", prepare)
    gc.disable()
    try:
        figures("run", step(2), "base")
    finally:
        gc.enable()
    assert (len(policies), len(prepared)) == (3, 1)


def test_answers_of_several_say_whose_they_are():
    figures("run", step(2), "--out", "answers.jsonl", "--limit", "2")
    lines = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    assert [line["target"] for line in lines] == ["run", "run", step(2), step(2)]
    alone = [json.loads(line) for line in Path("run/samples/eval.jsonl").read_text().splitlines()]
    assert [{**line, "target": "run"} for line in alone] == lines[:2]


def test_each_has_its_records():
    measured = figures("run", "other", "--config", "run/config.yaml", "--per-record", "2")["targets"]
    assert [len(each["records"]) for each in measured] == [2, 2]
    shown = command("eval", "run", "other", "--per-record", "2").stdout.splitlines()
    assert [line for line in shown if line.endswith(":")] == ["run:", "other:"]
    assert sum("highest loss" in line for line in shown) == 2


def test_people_see_a_column_for_each_within_80_columns():
    names = ["run", *map(step, (2, 4, 6)), "base", "other"]
    result = command("eval", *names)
    assert result.exit_code == 0, result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert result.stdout.isprintable() or "\x1b" not in result.stdout
    losses = [line for line in result.stdout.splitlines() if line.startswith("│ dev_loss ")]
    shown = [cell.strip() for line in losses for cell in line.strip("│").split("│")[1:]]
    assert shown == [f"{each['dev_loss']:.4f}" for each in figures(*names)["targets"]]
    assert len(losses) == 2, "six columns stand in two tables"
    headers = [line for line in result.stdout.splitlines() if line.startswith("┃")]
    for part in ("run", "checkpoints/", "step-000002", "step-000006", "base", "other"):
        assert any(part in line for line in headers)


def test_what_was_measured_is_shown_where_a_later_target_fails(tmp_path: Path):
    shutil.copytree("other", tmp_path / "broken")
    files = list((tmp_path / "broken").glob("*.safetensors"))
    content = bytearray(files[0].read_bytes())
    content[-4:] = b"\x00\x00\xc0\x7f"  # not a number
    files[0].write_bytes(bytes(content))
    result = command("eval", "run", str(tmp_path / "broken"), columns=200)
    assert result.exit_code == 2
    assert "holds values that are not finite" in result.stderr
    assert f"{figures('run')['dev_loss']:.4f}" in result.stdout


def damaged_checkpoint(tmp_path: Path) -> str:
    shutil.copytree("run", tmp_path / "run", symlinks=True)
    name = step(2, str(tmp_path / "run"))
    Path(name, "state.json").unlink()
    return name


def test_every_target_and_setting_that_is_wrong_is_told_at_once(tmp_path: Path):
    Path(tmp_path, "unfinished").mkdir()
    Path(tmp_path, "unfinished", "config.yaml").write_text("{}")
    damaged = damaged_checkpoint(tmp_path)
    unfinished = str(tmp_path / "unfinished")
    result = command("eval", "run", step(8), unfinished, damaged, "lerning_rate=2", "exact_match=gsm")
    there = "step-000002, step-000004, step-000006"
    assert result.exit_code == 2
    assert result.stderr.splitlines()[:4] == [
        f"command line: {step(8)}: no such checkpoint; the run has {there}",
        f"command line: {unfinished} has no final/; finish the run with train --resume",
        f"command line: {damaged} is damaged: state.json: missing; restore it, or name another checkpoint",
        "command line: lerning_rate: unknown key; did you mean training.learning_rate?",
    ]
    assert len(result.stderr.splitlines()) == 5


def test_a_checkpoint_whose_bits_have_changed_is_refused_before_it_is_used(tmp_path: Path):
    shutil.copytree("run", tmp_path / "run", symlinks=True)
    name = step(2, str(tmp_path / "run"))
    path = Path(name, "optimizer.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    result = command("eval", name)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"{name}: damaged: optimizer.safetensors: ")
    assert result.stderr.endswith("; restore it, or name another checkpoint\n")


def test_models_that_cannot_take_the_records_are_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from finetooth.evaluation.speaker import load_policy

    loaded: list[object] = []
    monkeypatch.setattr(
        "finetooth.evaluation.speaker.load_policy", lambda *a, **k: loaded.append(a) or load_policy(*a, **k)
    )
    small = write_base(tmp_path / "small", vocab_size=200)
    short = write_base(tmp_path / "short", max_position_embeddings=16)
    foreign = write_base(tmp_path / "foreign")
    definition = json.loads((foreign / "tokenizer.json").read_text())
    vocabulary = definition["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (foreign / "tokenizer.json").write_text(json.dumps(definition))
    result = command("eval", "run", str(small), str(short))
    longest = max(json.loads(line)["tokens"] for line in Path("run/ledger.jsonl").read_text().splitlines())
    remedy = "leave it out, or measure it with a --config whose model.path it is"
    assert (result.exit_code, result.stderr.splitlines()) == (
        2,
        [
            f"command line: {small}: 200 embeddings, and the records' ids go up to 298; {remedy}",
            f"command line: {short}: 16 positions, and the longest document has {longest} tokens; "
            "leave it out, or lower data.max_length",
        ],
    )
    fact = "its tokenizer gives other ids than that with which the records were encoded"
    for names in (["run", str(foreign)], [str(foreign), "--config", "run.yaml"]):
        result = command("eval", *names)
        assert (result.exit_code, result.stderr) == (2, f"command line: {foreign}: {fact}; {remedy}\n")
    assert not loaded, "nothing is loaded before all is known to fit"


def test_a_model_of_the_named_tokenizer_may_have_another_of_its_own(tmp_path: Path):
    """Settings that name model.tokenizer say which one belongs to model.path."""
    write_small_tokenizer(tmp_path / "tokenizer")
    base = write_base(tmp_path / "base")
    definition = json.loads((base / "tokenizer.json").read_text())
    definition["model"]["vocab"]["a"], definition["model"]["vocab"]["b"] = 1, 0
    (base / "tokenizer.json").write_text(json.dumps(definition))
    settings = [f"model.path={base}", f"model.tokenizer={tmp_path / 'tokenizer'}"]
    assert "dev_loss" in figures(str(base), "--config", "run.yaml", *settings)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["learning_rate=1e-4"], "no target; name a run directory, a checkpoint of one, or a model folder"),
        (["base", "other"], "none of the targets belongs to a run; add --config RUN.yaml"),
        (["base", "max_new_tokens=3"], "base is no run directory; add --config RUN.yaml"),
    ],
)
def test_without_target_or_settings_nothing_can_be_measured(arguments: list[str], sentence: str):
    result = command("eval", *arguments)
    assert (result.exit_code, result.stderr) == (2, f"command line: {sentence}\n")


@pytest.mark.parametrize("absent", ["absent", "./absent", "absent.pt"])
def test_a_model_that_is_not_there_is_told_before_records_are_prepared(
    absent: str, monkeypatch: pytest.MonkeyPatch
):
    def prepare(*arguments: Any, **keywords: Any) -> None:
        raise AssertionError("prepared in vain")

    monkeypatch.setattr("finetooth.evaluation.judging.prepare_data", prepare)
    result = command("eval", "run", absent)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"command line: {absent}: ")
