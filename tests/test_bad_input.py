"""Everything unusable that a user can hand over: one table of mistakes, exit codes and whole messages."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.small_run import write_base, write_run
from typer.testing import CliRunner, Result

from finetooth.arguments import spell_out_resume
from finetooth.cli import app

SETTINGS, DATA, FAILED = 2, 3, 1


@dataclass(frozen=True)
class Mistake:
    """What is broken in a folder whose run would train, how it is called, and what is said."""

    breaks: Callable[[Path], object]
    says: str
    exit_code: int
    arguments: tuple[str, ...] = field(default=("train", "run.yaml"))


def append(*lines: str) -> Callable[[Path], object]:
    """Puts lines behind the twenty good records."""

    def breaks(folder: Path) -> None:
        with (folder / "train.jsonl").open("a") as file:
            file.write("".join(line + "\n" for line in lines))

    return breaks


def only(*records: dict[str, Any] | str) -> Callable[[Path], object]:
    """Puts records in the place of the good ones."""
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    return lambda folder: (folder / "train.jsonl").write_text("".join(line + "\n" for line in lines))


def turns(*messages: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in messages]}


def change(section: str, **settings: Any) -> Callable[[Path], object]:
    """Changes settings in run.yaml, which JSON is."""

    def breaks(folder: Path) -> None:
        content = json.loads((folder / "run.yaml").read_text())
        content[section].update(settings)
        (folder / "run.yaml").write_text(json.dumps(content, indent=1))

    return breaks


def do(*steps: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: [step(folder) for step in steps]


def nothing(folder: Path) -> None:
    """The mistake is in the arguments."""


def put(name: str, content: str = "mine") -> Callable[[Path], object]:
    def breaks(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)

    return breaks


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def take_away_the_end_token(folder: Path) -> None:
    change("data", template="headers")(folder)
    (folder / "base" / "tokenizer_config.json").write_text("{}")


GOOD = turns(("user", "What is two?"), ("assistant", "four"))
MISTAKES: dict[str, Mistake] = {
    "broken JSON": Mistake(
        append('{"prompt": "What', json.dumps({"prompt": "a", "response": "b"})),
        "train.jsonl:21: broken JSON at character 12: unterminated string starting at; correct or remove it",
        DATA,
    ),
    "a line that is no object": Mistake(
        append("[1, 2]"), "train.jsonl:21: a list instead of an object; correct or remove it", DATA
    ),
    "an unknown role": Mistake(
        only(GOOD, turns(("user", "a"), ("robot", "b"))),
        "train.jsonl:2: messages[1]: unknown role 'robot'; use system, user, assistant or tool",
        DATA,
    ),
    "no assistant turn": Mistake(
        only(GOOD, turns(("user", "a"))),
        "train.jsonl:2: no assistant turn; add an answer or remove the record",
        DATA,
    ),
    "an empty answer": Mistake(
        append(json.dumps({"prompt": "What?", "response": " "})),
        "train.jsonl:21: empty answer; write an answer or remove the record",
        DATA,
    ),
    "several bad records": Mistake(
        append("{", json.dumps({"prompt": 1, "response": "b"}), json.dumps({"prompt": "a"})),
        (
            "train.jsonl:21: broken JSON at character 2: expecting property name enclosed in double quotes; "
            "correct or remove it\n"
            "train.jsonl:22: 'prompt' is a number instead of a text; write it as a text\n"
            "train.jsonl:23: no field 'response'; it has 'prompt'; add it, or set data.format or data.fields"
        ),
        DATA,
    ),
    "records of no known format": Mistake(
        only({"topic": "a", "summary": "b"}),
        "train.jsonl: its format is not recognised (line 1 has 'topic', 'summary'); "
        'set data.format, or say what its fields are called: data.fields: {"prompt": …, "response": …}',
        DATA,
    ),
    "a document that is too long": Mistake(
        do(
            change("data", on_long_document="error"),
            append(json.dumps({"prompt": "What?", "response": "four " * 60})),
        ),
        "train.jsonl:21: longer than data.max_length (64 tokens); "
        "raise data.max_length or shorten the record",
        DATA,
    ),
    "nothing left but what is too long": Mistake(
        only({"prompt": "What?", "response": "four " * 60}),
        (
            "train.jsonl: none of 1 records can be used for train "
            "(most often: longer than data.max_length (64 tokens)); "
            "correct the records or raise data.max_length\n"
            "train.jsonl: no record is left for dev; "
            "add different records, or set data.dev to a file or to null"
        ),
        DATA,
    ),
    "a missing file of records": Mistake(
        remove("train.jsonl"),
        "train.jsonl: no such file; check the path, which is relative to the working directory",
        DATA,
    ),
    "an empty file of records": Mistake(
        put("train.jsonl", ""), "train.jsonl: holds no record; check that this is the right file", DATA
    ),
    "a kind of file that is not read": Mistake(
        do(put("train.xlsx"), change("data", train="train.xlsx")),
        "train.xlsx: its name ends in '.xlsx'; "
        "write one JSON object per line into a file whose name ends in .jsonl",
        DATA,
    ),
    "a table without header": Mistake(
        do(put("train.csv", ",prompt\n0,a\n"), change("data", train="train.csv")),
        "train.csv:1: column 1 has no name; name it, or write the file without a column of row numbers",
        DATA,
    ),
    "rows of a table that do not fit": Mistake(
        do(put("train.csv", "prompt,response\na,b\na\na,b,c\n"), change("data", train="train.csv")),
        (
            "train.csv:3: 1 values in 2 columns; correct or remove it\n"
            "train.csv:4: 3 values in 2 columns; correct or remove it"
        ),
        DATA,
    ),
    "a table whose quotation marks do not pair": Mistake(
        do(put("train.csv", 'prompt,response\na,b\n"c,d\n'), change("data", train="train.csv")),
        "train.csv:3: the row has a quoted value that does not end; close its quotation mark",
        DATA,
    ),
    "records that are not compressed as their name says": Mistake(
        do(put("train.jsonl.gz", "{}"), change("data", train="train.jsonl.gz")),
        "train.jsonl.gz: its gzip data is damaged; write or copy it again",
        DATA,
    ),
    "a pattern that matches nothing": Mistake(
        change("data", train="shards/*.jsonl"), "shards/*.jsonl: matches no file; check the pattern", DATA
    ),
    "a folder with several splits": Mistake(
        do(put("all/train.jsonl"), put("all/test.jsonl"), change("data", train="all")),
        "all: holds several splits (all/test.jsonl, all/train.jsonl); "
        "name the files of one, for instance by a pattern",
        DATA,
    ),
    "a folder with files of an unknown kind": Mistake(
        do(put("all/a.jsonl"), put("all/b.xlsx"), put("all/c.zip"), change("data", train="all")),
        "".join(
            f"all/{name}: of no kind that holds records; "
            f"remove it from all, or name the files to be read by a pattern such as *.jsonl{end}"
            for name, end in (("b.xlsx", "\n"), ("c.zip", ""))
        ),
        DATA,
    ),
    "a folder that lacks shards": Mistake(
        do(put("all/a-00000-of-00002.jsonl"), change("data", train="all")),
        "all: all/a-*-of-00002.jsonl are 1 files; add what is missing of 2",
        DATA,
    ),
    "a saved dataset with several splits": Mistake(
        do(put("all/dataset_dict.json", '{"splits": ["train", "test"]}'), change("data", train="all")),
        "all: a saved dataset with the splits train, test; write all/train",
        DATA,
    ),
    "a pipe": Mistake(
        do(lambda folder: os.mkfifo(folder / "pipe.jsonl"), change("data", train="pipe.jsonl")),
        "pipe.jsonl: not a regular file; copy its content to a file",
        DATA,
    ),
    "a dataset of the hub that is not there": Mistake(
        change("data", train="hf://someone/records"),
        "data.train: hf://someone/records: not in the local cache, and offline mode is on; "
        "unset HF_HUB_OFFLINE to fetch it",
        SETTINGS,
    ),
    "a dataset of the hub without owner": Mistake(
        change("data", train="hf://records"),
        "data.train: hf://records: no name of a dataset; write hf://OWNER/NAME",
        SETTINGS,
    ),
    "a missing run file": Mistake(
        nothing, "none.yaml: no such file; check the path", SETTINGS, ("train", "none.yaml")
    ),
    "an unknown key": Mistake(
        change("training", lerning_rate=1e-4),
        "run.yaml:19: training.lerning_rate: unknown key; did you mean 'learning_rate'?",
        SETTINGS,
    ),
    "a name that other tools use": Mistake(
        change("training", batch_size=8),
        "run.yaml:19: training.batch_size: not a name used here; "
        "write training.global_batch_size, the documents per update over all devices",
        SETTINGS,
    ),
    "a wrong type": Mistake(
        change("training", learning_rate="fast", max_steps=1.5),
        (
            "run.yaml:14: training.learning_rate: found the text 'fast'; write a number above 0\n"
            "run.yaml:19: training.max_steps: found the number 1.5; write a whole number at least 1 or null"
        ),
        SETTINGS,
    ),
    "settings that contradict each other": Mistake(
        nothing,
        (
            "command line: training.row_tokens (32) is below data.max_length (64); "
            "raise training.row_tokens or lower data.max_length\n"
            "command line: training.min_learning_rate (1) is above training.learning_rate (0.01); "
            "lower training.min_learning_rate or raise training.learning_rate"
        ),
        SETTINGS,
        ("train", "run.yaml", "row_tokens=32", "min_learning_rate=1"),
    ),
    "a warm-up that never ends": Mistake(
        nothing,
        "training.warmup_steps: 100 steps of warm-up in a run of 10 steps; "
        "write fewer, or a share such as 0.03",
        SETTINGS,
        ("train", "run.yaml", "warmup_steps=100"),
    ),
    "a model that is not there": Mistake(
        change("model", path="./nowhere"),
        "model.path: ./nowhere: no such folder; name an existing folder or a hub repository",
        SETTINGS,
    ),
    "a model without parameters": Mistake(
        remove("base/model.safetensors"),
        "model.path: base holds neither model.safetensors nor model.safetensors.index.json; "
        "name a folder with parameters",
        SETTINGS,
    ),
    "a model without tokenizer": Mistake(
        remove("base/tokenizer.json"),
        "model.path: base has no tokenizer.json; name a folder that holds a tokenizer",
        SETTINGS,
    ),
    "a tokenizer with more tokens than the embedding has rows": Mistake(
        lambda folder: write_base(folder / "base", vocab_size=290),
        "model.tokenizer: ids up to 298, but the embedding has 290 rows; "
        "use the tokenizer that belongs to the model",
        SETTINGS,
    ),
    "documents longer than the model has positions": Mistake(
        lambda folder: write_base(folder / "base", max_position_embeddings=8),
        "data.max_length: the longest document has 27 tokens, the model 8 positions; write 8 or less",
        SETTINGS,
    ),
    "a dev document longer than the model has positions": Mistake(
        do(
            lambda folder: write_base(folder / "base", max_position_embeddings=40),
            put("dev.jsonl", json.dumps({"prompt": "What?", "response": "four " * 30})),
            change("data", dev="dev.jsonl"),
        ),
        "data.max_length: the longest document has 46 tokens, the model 40 positions; write 40 or less",
        SETTINGS,
    ),
    "headers without an end token": Mistake(
        take_away_the_end_token,
        "data.template: headers ends an answer with the tokenizer's eos_token, and it has none; "
        "name one in tokenizer_config.json, or use another template",
        SETTINGS,
    ),
    "a template that is not there": Mistake(
        change("data", template="mine.jinja"),
        "data.template: mine.jinja cannot be read (No such file or directory); "
        "write auto, chatml, six-token, headers, concat or the path of a .jinja file",
        SETTINGS,
    ),
    "a folder that holds a run": Mistake(
        put("run/config.yaml"),
        "output_dir: run already holds a run; add --resume auto to start it anew, or name another folder",
        SETTINGS,
    ),
    "a folder that holds something else": Mistake(
        put("run/thesis.tex"),
        "output_dir: run holds files that are not a run's; name an empty or new folder",
        SETTINGS,
    ),
    "no run to resume": Mistake(
        nothing,
        "output_dir: run holds no run; leave --resume out, or write --resume auto",
        SETTINGS,
        ("train", "run.yaml", "--resume"),
    ),
    "a run to resume without a checkpoint": Mistake(
        put("run/config.yaml"),
        "run/checkpoints: no checkpoint; write --resume auto to start the run anew",
        FAILED,
        ("train", "run.yaml", "--resume"),
    ),
    "an evaluation of no run": Mistake(
        nothing, "command line: base is no run directory; add --config RUN.yaml", SETTINGS, ("eval", "base")
    ),
    "an evaluation of a run that has no policy": Mistake(
        do(lambda folder: put("run/config.yaml", (folder / "run.yaml").read_text())(folder)),
        "command line: run has no final/; finish the run with train --resume",
        SETTINGS,
        ("eval", "run"),
    ),
    "a chat with nobody": Mistake(
        nothing,
        "command line: ./nowhere: no such folder; name an existing folder or a hub repository",
        SETTINGS,
        ("chat", "./nowhere"),
    ),
    "a comparison with nobody": Mistake(
        nothing,
        "command line: no: no folder of that name, and not in the local cache, and offline mode is on; "
        "unset HF_HUB_OFFLINE to fetch it",
        SETTINGS,
        ("compare", "base", "no", "--prompt", "a"),
    ),
    "a demo in a folder that holds something else": Mistake(
        nothing,
        "--out: . holds something else than a demo; name a new folder",
        SETTINGS,
        ("demo", "--out", "."),
    ),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a run that would train."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path)
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, spell_out_resume(arguments), prog_name="finetooth", env={"COLUMNS": "200"})


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_sentences(folder: Path, name: str):
    mistake = MISTAKES[name]
    mistake.breaks(folder)
    result = call(*mistake.arguments)
    assert (result.stderr, result.exit_code) == (mistake.says + "\n", mistake.exit_code)


def test_without_a_mistake_the_run_trains(folder: Path):
    """Negative control of the table: what is broken there is whole here."""
    result = call("train", "run.yaml", "max_steps=1")
    assert (result.stderr, result.exit_code) == ("", 0)


def test_a_refused_run_leaves_no_folder_behind(folder: Path):
    append("{")(folder)
    assert call("train", "run.yaml").exit_code == DATA
    assert not (folder / "run").exists()


def test_what_is_dropped_stands_in_the_ledger(folder: Path):
    append("{", json.dumps({"prompt": "What?", "response": "four " * 60}))(folder)
    change("data", on_bad_record="drop", dev=None)(folder)
    result = call("train", "run.yaml", "max_steps=1")
    assert (result.stderr, result.exit_code) == ("", 0)
    ledger = [json.loads(line) for line in (folder / "run" / "ledger.jsonl").read_text().splitlines()]
    assert [line["state"] for line in ledger] == ["kept"] * 20 + ["refused", "dropped"]
    assert ledger[20]["origin"] == "train.jsonl:21"
    assert (ledger[21]["origin"], ledger[21]["reason"]) == (
        "train.jsonl:22",
        "longer than data.max_length (64 tokens)",
    )
