"""A small run with records of every fate, and what `finetooth inspect` says of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.small_tokenizer import write_small_tokenizer
from typer.testing import CliRunner, Result

from finetooth.cli import app
from finetooth.data.encode import encode_chat

TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def turns(*texts: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[place % 2], "content": text} for place, text in enumerate(texts)]


RECORDS: list[Any] = [
    *({"messages": turns(f"What is {number}?", "four " * number)} for number in range(1, 9)),
    {"messages": turns("Two?", "four", "And two?", "is four")},  # 9
    {"messages": turns("Add two.", "four"), "tools": [TOOL]},  # 10
    {"messages": turns("What is long?", "four " * 300)},  # 11: dropped
    {"messages": turns("What is nothing?", "")},  # 12: refused
    '{"messages": [{"role": <script>',  # 13: refused
    {"messages": turns("What is 3?", "four " * 3)},  # 14: stands twice
    {"messages": [*turns("Hello"), {"role": "judge", "content": "guilty"}]},  # 15: refused
]


def enter_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Writes a run of the records above into a folder, which becomes the working directory."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("FINETOOTH_CACHE", str(folder / "cache"))
    write_small_tokenizer(folder / "tokenizer")
    (folder / "own.jinja").write_text(TEMPLATE)
    write_records(folder, RECORDS)
    write_settings(folder)
    return folder


def write_records(folder: Path, records: list[Any]) -> None:
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    (folder / "train.jsonl").write_text("".join(line + "\n" for line in lines))


def write_settings(folder: Path, **data: Any) -> None:
    settings = {
        "model": {"path": "tokenizer"},
        "data": {"train": "train.jsonl", "dev": None, "template": "own.jinja", "max_length": 200, **data},
        "training": {"global_batch_size": 4, "row_tokens": 200, "num_train_epochs": 2},
        "output_dir": "run",
    }
    (folder / "run.yaml").write_text(json.dumps(settings))


def command(*arguments: str, **variables: str) -> Result:
    settings = {"COLUMNS": "100", **variables}
    return CliRunner().invoke(app, ["inspect", "run.yaml", *arguments], prog_name="finetooth", env=settings)


def inspected(*arguments: str) -> dict[str, Any]:
    result = command(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def expected_documents(record: dict[str, Any]) -> list[tuple[list[int], list[float]]]:
    documents = encode_chat("tokenizer", record["messages"], tools=record.get("tools"), template="own.jinja")
    return [(document.token_ids.tolist(), document.loss_weights.tolist()) for document in documents]


def shown_documents(report: dict[str, Any]) -> list[tuple[list[int], list[float]]]:
    return [(document["token_ids"], document["loss_weights"]) for document in report["documents"]]
