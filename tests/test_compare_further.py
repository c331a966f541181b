"""`compare --general` tells how far a model has moved from another, `--records` what became of records."""

import json
import shutil
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.small_run import write_base, write_run
from tests.small_tokenizer import write_small_tokenizer
from typer.testing import CliRunner, Result

from finetooth.assets.general_prompts import GENERAL_PROMPTS
from finetooth.base.devices import DeviceManager
from finetooth.cli import app
from finetooth.data.records import Message
from finetooth.data.templates.template import encode_prompt
from finetooth.evaluation.forgetting import answer_losses, mean_moved
from finetooth.evaluation.speaker import Speaker, open_speaker

CPU = DeviceManager("cpu", "fp32")
SHORT = ("--max-new-tokens", "4")
EXAM = {"every": 0, "exact_match": "regex:is", "max_new_tokens": 8}


def command(*arguments: str, columns: int = 80) -> Result:
    environment = {"COLUMNS": str(columns), "NO_COLOR": "1"}
    return CliRunner().invoke(app, ["compare", *arguments], prog_name="finetooth", env=environment)


def found(*arguments: str) -> dict[str, Any]:
    result = command(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a finished run in `run/`, its base in `base/`, and another model in `other/`."""
    folder = tmp_path_factory.mktemp("compare")
    with chdir(folder):
        write_run(
            folder,
            num_records=24,
            data={"dev": 0.5},
            training={"max_steps": 24},
            evaluation=EXAM,
            checkpoints={"every": 8, "keep": 9},
        )
        write_base(folder / "other", tie_word_embeddings=False, seed=5)
        trained = CliRunner().invoke(app, ["train", "run.yaml"], prog_name="finetooth")
        assert trained.exit_code == 0, trained.stderr
        yield folder


@torch.no_grad()
def naive_loss(speaker: Speaker, prompt: list[int], answer: list[int]) -> float:
    """One token after another, each from a whole pass over all before it, in float64."""
    losses: list[float] = []
    for place in range(len(answer)):
        ids = torch.tensor([[*prompt, *answer[:place]]])
        with speaker.policy.own_attention():
            logits = speaker.policy.model(input_ids=ids, use_cache=False).logits[0, -1]
        losses.append(-float(torch.log_softmax(logits.double(), dim=0)[answer[place]]))
    return sum(losses) / len(losses)


def test_the_loss_of_an_answer_is_that_of_a_naive_account():
    speaker = open_speaker("run", devices=CPU)
    prompts = [encode_prompt(speaker.template, [Message("user", text)]) for text in GENERAL_PROMPTS[:3]]
    answers = [list(one.token_ids) for one in speaker.go_on(prompts, max_new_tokens=5)]
    answers[1] = [5, 6, 7, 8, 9]  # one that it would not give
    assert answer_losses(speaker, prompts, answers) == pytest.approx(
        [naive_loss(speaker, prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)],
        rel=1e-5,
    )


def test_an_answer_that_cannot_be_given_has_no_figure():
    speaker = open_speaker("other", devices=CPU)
    long = [1] * 300
    assert answer_losses(speaker, [[1], [1], long, [1]], [[], [100_000], [2], [2]])[:3] == [None] * 3
    assert answer_losses(speaker, [[1]], [[]]) == [None]
    assert mean_moved([None, 1.0, 2.0]) == 1.5
    assert mean_moved([None]) is None


def test_general_prompts_tell_how_far_the_second_has_moved():
    general = found("run", "base", "--general", *SHORT)["general"]
    assert [each["prompt"] for each in general["answers"]] == list(GENERAL_PROMPTS)
    one, other = open_speaker("run", devices=CPU), open_speaker("base", devices=CPU)
    text = GENERAL_PROMPTS[4]
    prompts = [encode_prompt(speaker.template, [Message("user", text)]) for speaker in (one, other)]
    (answer,) = one.go_on(prompts[:1], max_new_tokens=4)
    ids = list(answer.token_ids)
    expected = naive_loss(other, prompts[1], ids) - naive_loss(one, prompts[0], ids)
    assert general["answers"][4]["moved"] == pytest.approx(expected, rel=1e-4)
    moved = [each["moved"] for each in general["answers"] if each["moved"] is not None]
    assert general["mean_moved"] == pytest.approx(sum(moved) / len(moved))
    assert general["mean_moved"] > 0.1


def test_a_model_has_not_moved_from_itself():
    """Negative control of the test above."""
    general = found("other", "other", "--general", *SHORT)["general"]
    assert general["mean_moved"] == 0
    assert all(each["first"] == each["second"] for each in general["answers"])


def test_prompts_and_general_prompts_stand_apart():
    both = found("base", "run", "--general", "--prompt", "What is 3?", *SHORT)
    assert [each["prompt"] for each in both["answers"]] == ["What is 3?"]
    assert len(both["general"]["answers"]) == len(GENERAL_PROMPTS)
    assert set(both) == {"first", "second", "answers", "general"}


def test_models_of_other_tokenizers_have_no_common_answers(tmp_path: Path):
    foreign = write_base(tmp_path / "foreign")
    write_small_tokenizer(foreign)
    definition = json.loads((foreign / "tokenizer.json").read_text())
    vocabulary = definition["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (foreign / "tokenizer.json").write_text(json.dumps(definition))
    result = command("base", str(foreign), "--general")
    fact = "--general: the two have different tokenizers, so answers of one say nothing to the other"
    remedy = "leave it out, or name models of one tokenizer"
    assert (result.exit_code, result.stderr) == (2, f"command line: {fact}; {remedy}\n")


def test_a_checkpoint_speaks_with_the_template_of_its_run_also_before_that_ends(tmp_path: Path):
    shutil.copytree("run", tmp_path / "run", symlinks=True)
    shutil.rmtree(tmp_path / "run" / "final")
    names = ("run/checkpoints/best", str(tmp_path / "run" / "checkpoints" / "best"))
    (both,) = found(*names, "--prompt", "What is 3?", *SHORT)["answers"]
    assert both["first"] == both["second"]
    templates = [open_speaker(name, devices=CPU).template for name in names]
    prompts = [encode_prompt(template, [Message("user", "What is 3?")]) for template in templates]
    assert prompts[0] == prompts[1]
    assert templates[0].stop_token_ids == templates[1].stop_token_ids


def losses(name: str) -> dict[str, float]:
    """The loss of each dev record, as `eval` tells it."""
    arguments = ["eval", name, "--config", "run.yaml", "--per-record", "99", "exact_match=null", "--json"]
    result = CliRunner().invoke(app, arguments, prog_name="finetooth")
    assert result.exit_code == 0, result.stderr
    return {each["origin"]: each["loss"] for each in json.loads(result.stdout)["records"]}


def test_records_that_got_better_and_worse_are_named_with_both_losses():
    records = found("other", "run", "--records", "3")["records"]
    before, after = losses("other"), losses("run")
    growth = {origin: after[origin] - before[origin] for origin in before}
    assert records["num_records"] == len(before) > 6
    assert records["num_better"] == sum(each < 0 for each in growth.values()) > 3
    assert records["num_worse"] == sum(each > 0 for each in growth.values())
    assert [each["origin"] for each in records["better"]] == sorted(growth, key=growth.__getitem__)[:3]
    for each in records["better"]:
        assert (each["first"], each["second"]) == pytest.approx(
            (before[each["origin"]], after[each["origin"]]), rel=1e-6
        )


def test_the_other_way_round_all_is_reversed():
    there, back = (found(*names, "--records", "2")["records"] for names in (("base", "run"), ("run", "base")))
    assert (there["first_loss"], there["num_better"]) == (back["second_loss"], back["num_worse"])
    assert [each["origin"] for each in there["better"]] == [each["origin"] for each in back["worse"]]
    assert there["answers"]["right"] == back["answers"]["wrong"]
    assert there["better"][0]["first"] == back["worse"][0]["second"]


def test_a_model_is_neither_better_nor_worse_than_itself():
    same = found("run", "run", "--records", "2")["records"]
    assert (same["num_better"], same["num_worse"], same["better"], same["worse"]) == (0, 0, [], [])


def test_answers_that_turned_right_and_wrong_are_named():
    answers = found("other", "run", "--records", "2")["records"]["answers"]
    outcomes: list[dict[str, bool]] = []
    for name in ("other", "run"):
        arguments = ["eval", name, "--config", "run.yaml", "--out", "answers.jsonl"]
        assert CliRunner().invoke(app, arguments, prog_name="finetooth").exit_code == 0
        lines = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
        outcomes.append({line["origin"]: line["exact_match"] for line in lines})
    before, after = outcomes
    assert set(answers["right"]) == {origin for origin in before if after[origin] and not before[origin]}
    assert set(answers["wrong"]) == {origin for origin in before if before[origin] and not after[origin]}
    assert answers["num_right_twice"] == sum(before[origin] and after[origin] for origin in before)
    assert answers["num_wrong_twice"] == sum(not before[o] and not after[o] for o in before)


def test_people_see_all_of_it_within_80_columns():
    result = command("base", "run/checkpoints/step-000008", "--general", "--records", "2", *SHORT)
    assert result.exit_code == 0, result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 80
    records = found("base", "run/checkpoints/step-000008", "--records", "2")["records"]
    assert f"{records['first_loss']:.4f} → {records['second_loss']:.4f}" in result.stdout
    for each in records["better"]:
        assert f"{each['first']:.4f}" in result.stdout
    assert "turned right" in result.stdout
    assert "nats per token, mean" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["base", "run"],
            "command line: no prompt; give --prompt TEXT or --prompts FILE, --general or --records N\n",
        ),
        (
            ["base", "run", "--general", "--config", "run.yaml"],
            "command line: --config belongs to --records; give both, or leave it out\n",
        ),
        (
            ["base", "other", "--records", "3"],
            "command line: none of the targets belongs to a run; add --config RUN.yaml\n",
        ),
        (
            ["run/checkpoints/step-000099", "absent/run/x", "--general"],
            "command line: run/checkpoints/step-000099: no such checkpoint; the run has "
            "step-000008, step-000016, step-000024\n",
        ),
    ],
)
def test_a_mistake_is_a_sentence(arguments: list[str], sentence: str):
    result = command(*arguments)
    assert (result.exit_code, result.stderr) == (2, sentence)


def test_records_need_a_dev_part(tmp_path: Path):
    settings = json.loads(Path("run.yaml").read_text())
    settings["data"]["dev"] = None
    settings["evaluation"] = {"every": 0}
    (tmp_path / "bare.yaml").write_text(json.dumps(settings))
    result = command("base", "run", "--records", "3", "--config", str(tmp_path / "bare.yaml"))
    assert (result.exit_code, result.stderr) == (
        2,
        "command line: --records: data.dev is null, so there are no dev records; name another --config\n",
    )
