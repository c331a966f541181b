"""`finetooth init`: what it writes can be trained, says why, and never takes the place of what is there."""

import json
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.small_run import SOURCES, write_base, write_records
from tests.small_tokenizer import write_small_tokenizer
from transformers import AutoTokenizer
from typer.testing import CliRunner, Result

from finetooth import init as init_module
from finetooth.base.machine import Machine
from finetooth.cli import app
from finetooth.config.load import load_config
from finetooth.data.templates.template import resolve_template
from finetooth.data.tokenizer.tokenizer import load_tokenizer
from finetooth.training.final import exported_template

MACHINE = Machine(memory=16_000_000_000, free=12_000_000_000)
RUN_FILE = """\
# Written by finetooth init; every value can be changed.
# This machine: 16.0 GB of memory, no GPU.
# All parameters are trained: about 401.2 MB of 12.0 GB that are free.
model:
  path: base               # 25.8k parameters, documents of up to 256 tokens
data:
  train: train.jsonl       # 200 records
  format: prompt-response  # recognised by the fields of the records
  template: auto           # prompt, then answer; chatml would make a chat
  dev: 0.1                 # about 20 documents are kept out, to judge by
  max_length: 64           # tokens; the longest document has 18
training:
  num_train_epochs: 3      # passes over about 180 documents, which are few
  global_batch_size: 4     # documents per update, so 135 updates in all
  learning_rate: 1e-3      # for a model of this size; larger ones want less
  min_learning_rate: 1e-4  # a tenth, reached at the end
  warmup_steps: 0.1        # a share: it rises over the first 14 updates
  row_tokens: 64           # tokens at once; changes speed and memory alone
evaluation:
  every: 10                # updates; about ten times in all
  train_documents: 20      # as many as of dev, so that it is quick
checkpoints:
  every: 10                # saved with each evaluation
output_dir: runs/train     # all that the run leaves behind
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with 200 records and a base model, on a machine of 16 GB."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(init_module, "this_machine", lambda: MACHINE)
    write_base(tmp_path / "base")
    write_records(tmp_path / "train.jsonl", 200)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), prog_name="finetooth")


def init(*arguments: str) -> dict[str, Any]:
    """What `init` tells of train.jsonl and base as JSON; it must succeed."""
    result = run("init", "train.jsonl", "--model", "base", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_the_file_in_full(folder: Path):
    told = init()
    assert (folder / "run.yaml").read_text() == RUN_FILE
    assert told["settings"] == {key: told["settings"][key] for key in told["reasons"]}
    assert (told["preset"], told["format"], told["template"]) == ("full", "prompt-response", "concat")
    assert (told["out"], told["next"]) == ("run.yaml", "finetooth train run.yaml")


def test_what_it_says_in_full(folder: Path):
    result = run("init", "train.jsonl", "--model", "base", "--out", "my run.yaml")
    assert result.exit_code == 0
    assert result.stdout.partition("\n\ntrain.jsonl:")[0] == (
        "200 records, read as prompt-response\n"
        "tokens per document: median 15, 95 % up to 18, longest 18\n"
        "targets: 57% of the tokens, here ⟦in brackets⟧"
    )
    assert result.stdout.count("⟦") == 1 + 3
    assert result.stdout.endswith(
        f"\n{RUN_FILE}\nWritten: my run.yaml. Next:\n  finetooth train 'my run.yaml'\n"
    )
    assert "\x1b" not in result.stdout


def test_targets_are_coloured_on_a_terminal(folder: Path):
    shown = StringIO()
    init_module.init("train.jsonl", "base", console=Console(file=shown, force_terminal=True, width=80))
    assert "\x1b[1;32m⟦" in shown.getvalue()


@pytest.mark.parametrize("preset", ["full", "lora"])
def test_what_it_writes_is_trained(preset: str, folder: Path):
    init("--preset", preset)
    result = run("train", "run.yaml", "max_steps=2", "device=cpu", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["state"] == "finished"


@pytest.mark.parametrize(
    "system", ["configurable_gpt_gpt2", "configurable_gpt_llama", "per_head_gpt", "simple_llama"]
)
def test_pt_files_are_bases_too(system: str, shared: Path, folder: Path):
    write_small_tokenizer(folder / "tokenizer")
    path = str(next((shared / "checkpoints" / system).glob("*.pt*")))
    result = run("init", "train.jsonl", "--model", path, "tokenizer=tokenizer", "template=chatml", "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert (told["settings"]["model.tokenizer"], told["settings"]["data.template"]) == ("tokenizer", "chatml")
    assert told["reasons"]["model.path"].endswith("documents of up to 128 tokens")
    done = run("train", "run.yaml", "max_steps=1", "device=cpu", "dev=null")
    assert done.exit_code == 0, done.stderr


def test_a_config_json_gives_fresh_parameters(folder: Path):
    result = run("init", "train.jsonl", "--model", "base/config.json", "tokenizer=base", "--json")
    settings = json.loads(result.stdout)["settings"]
    assert settings["model.from_config"] == "base/config.json"
    assert "model.path" not in settings
    assert load_config("run.yaml").model.tokenizer == "base"


def test_given_settings_stay_and_the_others_follow(folder: Path):
    told = init("num_train_epochs=1", "template=chatml", "system=Be brief.")
    assert told["settings"]["data.system"] == "Be brief."
    assert told["reasons"]["training.num_train_epochs"] == told["reasons"]["data.system"] == "as you said"
    assert told["reasons"]["training.global_batch_size"] == "documents per update, so 45 updates in all"


def test_answers_may_be_compared_with_dev_records_that_are_chosen_later(folder: Path):
    settings = init("exact_match=plain")["settings"]
    assert (settings["evaluation.exact_match"], settings["data.dev"]) == ("plain", 0.1)


def test_records_that_cannot_be_used_are_left_out_and_told(folder: Path):
    with (folder / "train.jsonl").open("a") as file:
        file.write('{"prompt": "a"}\nnot json\n')
    told = init()
    assert told["settings"]["data.on_bad_record"] == "drop"
    assert told["reasons"]["data.on_bad_record"] == "2 records cannot be used; first train.jsonl:201"
    assert run("prepare", "run.yaml").exit_code == 0


def test_records_of_dev_among_those_of_train_are_left_out_and_told(folder: Path):
    (folder / "dev.jsonl").write_text("".join((folder / "train.jsonl").read_text().splitlines(True)[:3]))
    told = init("dev=dev.jsonl")
    assert told["reasons"]["data.on_leak"] == "3 records stand in dev too"
    assert run("prepare", "run.yaml").exit_code == 0


def test_of_many_records_the_first_are_looked_at(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(init_module, "_RECORDS_LOOKED_AT", 50)
    result = run("init", "train.jsonl", "--model", "base")
    assert result.stdout.startswith("200 records, read as prompt-response\nwhat follows is of the first 50\n")
    assert "# passes over about 180 documents, which are few\n" in result.stdout


def test_answers_of_gsm8k_are_compared(folder: Path):
    lines = [json.dumps({"question": f"{n}?", "answer": f"It is.\n#### {n}"}) for n in range(30)]
    (folder / "train.jsonl").write_text("\n".join(lines))
    assert init()["settings"]["evaluation.exact_match"] == "answer-tag"
    assert "evaluation.exact_match" not in init("dev=null", "--force")["settings"]


# As Qwen3's own: an answer without reasoning has an empty <think>, which the prompt has where that is asked.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}"
    "<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)


def test_a_template_is_told_that_there_is_no_reasoning(folder: Path):
    write_small_tokenizer(folder / "base", chat_template=THINKING)
    told = init()
    assert told["settings"]["data.template_args"] == {"enable_thinking": False}
    assert told["reasons"]["data.template_args"] == "no record has reasoning; prompts in use say so too"
    for sample in told["samples"]:
        trained = "".join(text for text, loss_weight in pieces_of(sample) if loss_weight)
        assert "think" not in trained
    assert load_config("run.yaml").data.template_args == {"enable_thinking": False}
    assert run("prepare", "run.yaml").exit_code == 0


def pieces_of(sample: dict[str, Any]) -> list[tuple[str, float]]:
    return [(piece[0], piece[1]) for piece in sample["pieces"]]


def test_where_it_is_not_told_so_an_empty_reasoning_would_be_trained(folder: Path):
    """Negative control; what is given stays."""
    write_small_tokenizer(folder / "base", chat_template=THINKING)
    told = init("template_args={enable_thinking: true}")
    assert told["settings"]["data.template_args"] == {"enable_thinking": True}
    assert told["reasons"]["data.template_args"] == "as you said"
    trained = "".join(text for text, loss_weight in pieces_of(told["samples"][0]) if loss_weight)
    assert trained.startswith("<think>\n\n</think>")


def test_where_a_record_has_reasoning_the_template_asks_for_it(folder: Path):
    write_small_tokenizer(folder / "base", chat_template=THINKING)
    with (folder / "train.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "What is 999?", "response": "<think>\nIt is.\n</think>\n\nis 999."}))
    assert "data.template_args" not in init()["settings"]


@pytest.mark.slow
def test_qwen3s_own_template_is_told_too(folder: Path, shared: Path):
    """What plain transformers makes of a question from final/ ends as what stood before the targets."""
    tokenizer = shared / "tokenizers" / "qwen3"
    lines = [json.dumps({"prompt": f"What is {n}?", "response": f"is {n}."}) for n in range(40)]
    (folder / "train.jsonl").write_text("\n".join(lines))
    told = init(f"tokenizer={tokenizer}")
    assert told["settings"]["data.template_args"] == {"enable_thinking": False}
    for sample in told["samples"]:
        text = "".join(("⟦" if weight else "") + piece for piece, weight in pieces_of(sample))
        assert text.partition("⟦")[0].endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
        assert "think" not in text.partition("⟦")[2]
    template = resolve_template(
        "auto", load_tokenizer(str(tokenizer)), template_args={"enable_thinking": False}
    )
    prompt = AutoTokenizer.from_pretrained(tokenizer).apply_chat_template(
        [{"role": "user", "content": "What is 3?"}],
        chat_template=exported_template(template),
        add_generation_prompt=True,
        tokenize=False,
    )
    assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_the_run_has_a_folder_of_its_own(folder: Path):
    (folder / "runs/train").mkdir(parents=True)
    assert init()["settings"]["output_dir"] == "runs/train-2"


def test_every_mistake_is_told_at_once(folder: Path):
    (folder / "run.yaml").write_text("mine")
    result = run("init", "train.jsonl", "--model", "./absent", "--preset", "lora", "adapter.type=dora")
    assert result.exit_code == 2
    assert result.stderr == (
        "--out: run.yaml is there already; name another file, or add --force to replace it\n"
        "--preset: lora, and adapter.type=dora is another; give one of them\n"
        "model.path: ./absent: no such folder; name an existing folder or a hub repository\n"
    )
    assert (folder / "run.yaml").read_text() == "mine"


def test_with_force_a_file_is_replaced(folder: Path):
    (folder / "run.yaml").write_text("mine")
    init("--force")
    assert (folder / "run.yaml").read_text() == RUN_FILE


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "base"], "--out: base is a folder; name a file"),
        (["--out", "a/run.yaml"], "--out: there is no folder a; make it, or name another file"),
        (["lr=1"], "command line: lr: not a name used here; write training.learning_rate"),
        (["min_learning_rate=0.1"], "run.yaml:16: training.min_learning_rate (0.1) is above "
         "training.learning_rate (0.001); lower training.min_learning_rate or raise training.learning_rate"),
    ],
)  # fmt: skip
def test_mistakes_are_told(arguments: list[str], said: str):
    result = run("init", "train.jsonl", "--model", "base", *arguments)
    assert (result.exit_code, result.stderr) == (2, said + "\n")
    assert not Path("run.yaml").exists()


def test_a_given_rate_or_row_is_not_held_against_what_is_chosen_later():
    settings = init("learning_rate=1e-6", "row_tokens=16")["settings"]
    assert (settings["training.min_learning_rate"], settings["data.max_length"]) == (1e-7, 16)
    assert settings["training.row_tokens"] == 16


def test_qlora_asks_for_its_library(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(init_module, "_has_four_bits", lambda: False)
    result = run("init", "train.jsonl", "--model", "base", "--preset", "qlora")
    assert result.stderr == "--preset: qlora needs bitsandbytes; pip install 'finetooth[qlora]'\n"


def test_where_no_record_can_be_used_each_says_why(folder: Path):
    (folder / "train.jsonl").write_text('{"prompt": "a", "response": 7}\n')
    result = run("init", "train.jsonl", "--model", "base")
    assert result.exit_code == 3
    assert result.stderr.startswith("train.jsonl:1: ")


def test_records_that_are_absent_are_told(folder: Path):
    said = "absent.jsonl: no such file; check the path, which is relative to the working directory"
    result = run("init", "absent.jsonl", "--model", "base")
    assert (result.exit_code, result.stderr) == (3, said + "\n")


def test_no_torch_is_loaded(folder: Path):
    code = "import sys; from finetooth.cli import app\n"
    code += "app(['init', 'train.jsonl', '--model', 'base'], standalone_mode=False)\n"
    code += "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    command = [sys.executable, "-c", code]
    environment = {"PYTHONPATH": str(SOURCES), "PATH": "", "FINETOOTH_CACHE": str(folder / "cache")}
    assert subprocess.run(command, env=environment, check=False, stdout=subprocess.DEVNULL).returncode == 0
