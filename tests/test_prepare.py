"""`prepare` prints what became of the records, in 80 columns, and returns the same as JSON."""

import json
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.small_tokenizer import write_small_tokenizer

from finetooth.config.schema import DataConfig, ModelConfig, SFTConfig
from finetooth.prepare import prepare


def run(data: dict[str, Any], **console: Any) -> tuple[dict[str, Any], str]:
    usual = {"train": "train.jsonl", "template": "chatml", "cache_dir": "cache", "on_bad_record": "drop"}
    config = SFTConfig(model=ModelConfig(path="tokenizer"), data=DataConfig(**usual | data), output_dir="run")
    output = StringIO()
    result = prepare(config, console=Console(file=output, width=80, **console))
    assert json.loads(json.dumps(result)) == result
    return result, output.getvalue()


@pytest.fixture(autouse=True)
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_small_tokenizer(tmp_path / "tokenizer")
    lines = [
        json.dumps({"prompt": f"What is {n}?", "response": "[red]four\x1b[31m", "id": n}) for n in range(30)
    ]
    long = json.dumps({"prompt": "What is two?", "response": "four " * 99})
    Path("train.jsonl").write_text("\n".join([*lines, '{"prompt": 1, "response": ""}', long, long]))


def test_the_summary_in_full():
    result, output = run({"dev": 0.2, "max_length": 80, "max_records": 33, "train": "train.jsonl"})
    train, dev = result["splits"]["train"], result["splits"]["dev"]
    for split in (train, dev):
        assert split["kept"] == split["documents"]
        assert split["kept"] + split["dropped"] + split["refused"] == split["records"]
    assert train["records"] + dev["records"] == 33

    def row(name: str, left: object, right: object) -> str:
        widths = [max(5, len(f"{split['tokens']:,}")) for split in (train, dev)]
        return f"{name:<19}  {left:>{widths[0]}}  {right:>{widths[1]}}\n"

    counts = ("records", "kept", "dropped", "refused", "documents", "tokens", "targets")
    shares = [f"{split['targets'] / split['tokens']:.1%}" for split in (train, dev)]
    lengths = [split["statistics"]["lengths"] for split in (train, dev)]
    assert output == (
        "train.jsonl: prepared, template chatml\n"
        f"ledger and stores: {result['folder']}\n\n"
        + row("", "train", "dev")
        + "".join(row(name, f"{train[name]:,}", f"{dev[name]:,}") for name in counts)
        + row("targets, share", *shares)
        + row("mean length", *(f"{each['mean']:.1f}" for each in lengths))
        + row("median length", *(f"{each['median']:.1f}" for each in lengths))
        + row("95 % no longer than", *(each["p95"] for each in lengths))
        + row("longest document", train["longest"], dev["longest"])
        + row("answers per record", 1, 1)
        + row("assistant messages", train["kept"], dev["kept"])
        + row("user messages", train["kept"], dev["kept"])
        + "2 × longer than data.max_length (80 tokens)\n"
        "1 × 'prompt' is a number instead of a text\n"
        "not read: 'id', in 30 records\n\n"
        f"The document of train.jsonl:{shown_line(output)}; targets stand ⟦in brackets⟧:\n\n"
        "<|im_start|>user↵\n"
        f"What is {shown_line(output) - 1}?<|im_end|>↵\n"
        "<|im_start|>assistant↵\n"
        "⟦[red]four\\x1b[31m<|im_end|>⟧↵\n\n"
    )
    assert Path(result["ledger"]).is_file()


def shown_line(output: str) -> int:
    return int(output.split("The document of train.jsonl:")[1].split(";")[0])


def test_a_second_call_says_that_nothing_was_to_do():
    first, _ = run({"dev": None})
    second, output = run({"dev": None})
    assert (first["is_reused"], second["is_reused"]) == (False, True)
    assert {**first, "is_reused": True} == second
    assert output.startswith("train.jsonl: already prepared, template chatml\n")


def test_what_was_not_read_trimmed_or_listed_is_told():
    broken = ["{", "[", "1", "null", '"a"', "{}"]
    good = [json.dumps({"prompt": "What?", "response": f" {n} "}) for n in range(3)]
    Path("train.jsonl").write_text("\n".join([*good, *broken, *good]))
    trimming = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.strip() }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    Path("trimming.jinja").write_text(trimming)
    result, output = run({"dev": None, "max_records": 9, "template": "trimming.jinja"})
    assert result["has_more_records"] is True
    assert result["num_trimmed"] == 6
    assert result["splits"]["train"]["refused"] == 6
    remarks = output.split("user messages")[1].split("\n")[1:9]
    assert remarks[5:8] == [
        "1 other reasons stand in the ledger",
        "records beyond data.max_records (9) were not read",
        "6 characters of whitespace cut off by the template",
    ]


def test_what_became_of_whole_messages_is_told():
    think = {"role": "assistant", "content": "<think>so</think>four"}
    question = {"role": "user", "content": "What?"}
    Path("train.jsonl").write_text(json.dumps({"messages": [question, think, question, think, question]}))
    rewriting = (
        "{% for m in messages %}<|im_start|>{{ m.role ~ '\n' }}"
        "{% if loop.last and m.role == 'assistant' %}<think>{{ m.reasoning_content }}</think>{% endif %}"
        "{{ m.content }}<|im_end|>{% endfor %}{{ '<|im_start|>assistant\n' if add_generation_prompt }}"
    )
    Path("rewriting.jinja").write_text(rewriting)
    result, output = run({"dev": None, "template": "rewriting.jinja"})
    assert [result[f"num_{name}"] for name in ("behind", "rewritten", "reasoning")] == [1, 1, 2]
    assert output.split("user messages")[1].split("\n")[1:4] == [
        "1 messages behind the last answer that is trained, left out",
        "1 conversations in several documents, as the template rewrites history",
        "2 answers whose leading <think>…</think> was read as reasoning",
    ]


def test_colours_are_for_terminals_only():
    _, plain = run({"dev": None})
    assert "\x1b" not in plain
    _, coloured = run({"dev": None}, force_terminal=True, color_system="standard")
    assert "\x1b[1;32m⟦[red]four\\x1b[31m<|im_end|>⟧" in coloured


def test_a_long_sample_is_cut_and_says_so():
    Path("train.jsonl").write_text(json.dumps({"prompt": "What is two?" * 400, "response": "four"}))
    _, output = run({"dev": None, "max_length": 9999})
    assert output.rstrip().endswith("…")
    assert len(output) < 4000


def test_several_sources_have_a_table_of_their_own():
    more = [json.dumps({"prompt": f"What is {n}?", "response": "more"}) for n in range(100, 105)]
    Path("a_folder_with_a_rather_long_name").mkdir()
    name = "a_folder_with_a_rather_long_name/and_a_file_in_it.jsonl"
    Path(name).write_text("\n".join(more))
    sources = [{"path": "train.jsonl", "max_records": 30}, {"path": name, "repeat": 3}]
    result, output = run({"dev": None, "train": sources})
    assert result["documents_per_epoch"] == 30 + 3 * 5
    assert "45 documents per epoch, with those that are repeated\n" in output
    assert "records beyond the max_records of a source were not read\n" in output
    lines = output.splitlines()
    (begin,) = (number for number, line in enumerate(lines) if line.startswith("source"))
    assert lines[begin].split() == ["source", "split", "records", "tokens", "targets", "median", "longest"]
    first, second = result["splits"]["train"]["statistics"]["sources"]
    assert lines[begin + 1].split()[:3] == ["train.jsonl", "train", str(first["records"])]
    assert lines[begin + 2].split()[1:3] == ["train", str(second["records"])]
    assert all(len(line) <= 80 for line in lines[begin : begin + 4])


def test_a_second_call_loads_neither_the_tokenizer_nor_the_library_of_the_hub(
    monkeypatch: pytest.MonkeyPatch,
):
    _, before = run({"dev": None})
    monkeypatch.setattr("finetooth.data.preparation.load_tokenizer", None)
    _, output = run({"dev": None})
    assert output.replace("already prepared", "prepared") == before
    settings = {"train": "train.jsonl", "dev": None, "template": "chatml", "on_bad_record": "drop"}
    Path("run.yaml").write_text(
        json.dumps({"model": {"path": "tokenizer"}, "data": settings, "output_dir": "r"})
    )
    check = (
        "import sys; from rich.console import Console; from finetooth import load_config; "
        "from finetooth.prepare import prepare; prepare(load_config('run.yaml'), console=Console()); "
        "assert not {'huggingface_hub', 'httpx', 'torch', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", check], check=True)
