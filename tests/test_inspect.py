"""`inspect` shows records, steps and samples as they are trained, and why a record is not."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.inspected import (
    RECORDS,
    TEMPLATE,
    TOOL,
    command,
    enter_run,
    expected_documents,
    inspected,
    shown_documents,
    turns,
    write_records,
    write_settings,
)
from tests.small_run import SOURCES


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run."""
    return enter_run(tmp_path, monkeypatch)


@pytest.mark.parametrize("number", range(1, 11))
def test_a_kept_record_is_shown_as_it_is_trained(number: int):
    report = inspected("--record", str(number))["record"]
    assert (report["origin"], report["number"]) == (f"train.jsonl:{number}", number)
    assert (report["state"], report["reason"], report["remedy"], report["text"]) == ("kept", None, None, None)
    assert shown_documents(report) == expected_documents(RECORDS[number - 1])
    assert inspected("--record", f"train.jsonl:{number}")["record"] == report


def test_a_kept_record_in_words():
    result = command("--record", "9")
    assert result.stdout == (
        "\nrecord 9, train.jsonl:9 (train, kept)\n"
        f"{len(expected_documents(RECORDS[8])[0][0])} tokens, "
        f"{int(sum(expected_documents(RECORDS[8])[0][1]))} targets\n\n"
        "<|im_start|>user↵\nTwo?<|im_end|>↵\n"
        "<|im_start|>assistant↵\n⟦four<|im_end|>⟧↵\n"
        "<|im_start|>user↵\nAnd two?<|im_end|>↵\n"
        "<|im_start|>assistant↵\n⟦is four<|im_end|>⟧↵\n"
    )


def test_a_dropped_record_shows_the_documents_it_would_have_had():
    report = inspected("--record", "11")["record"]
    assert (report["state"], report["reason"]) == ("dropped", "longer than data.max_length (200 tokens)")
    assert report["remedy"] == "raise data.max_length or shorten the record"
    assert shown_documents(report) == expected_documents(RECORDS[10])


def test_a_record_that_stands_twice_names_the_other():
    report = inspected("--record", "14")["record"]
    assert (report["state"], report["same_as"]) == ("dropped", "train.jsonl:3")
    assert shown_documents(report) == expected_documents(RECORDS[13])
    assert "(train.jsonl:3)" in command("--record", "14").stdout


@pytest.mark.parametrize(
    ("number", "reason", "text"),
    [
        ("12", "messages[1]: empty answer", '"content": "What is nothing?"'),
        ("13", "broken JSON at character 24: expecting value", RECORDS[12]),
        ("15", "messages[1]: unknown role 'judge'", '"content": "guilty"'),
    ],
)
def test_a_refused_record_says_why_and_shows_what_stands_in_it(number: str, reason: str, text: str):
    report = inspected("--record", number)["record"]
    assert (report["state"], report["reason"], report["documents"]) == ("refused", reason, [])
    assert text in report["text"]
    shown = command("--record", number).stdout
    assert f"{reason}; {report['remedy']}\n" in shown
    assert text in shown


def test_what_a_template_refuses_is_shown_message_by_message(folder: Path):
    (folder / "own.jinja").write_text(TEMPLATE.replace("{% if tools %}", "{% if false %}"))
    write_records(folder, [*RECORDS[:3], {**RECORDS[9], "tools": [TOOL]}])
    report = inspected("--record", "4")["record"]
    assert report["reason"] == "the template leaves out the tools"
    assert report["text"] == "user: Add two.\n\nassistant: four"


def test_records_of_several_sources_and_kinds_are_found(folder: Path):
    (folder / "pairs.jsonl").write_text('{"q": "What?", "a": "four"}\n{"q": "Which?", "a": ""}\n')
    given = {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}
    none = {"input_ids": [5, 6], "labels": [-100, -100]}
    (folder / "tokens.jsonl").write_text(f"{json.dumps(given)}\n{json.dumps(none)}\n")
    (folder / "plain.jsonl").write_text('{"text": "What is two?"}\n{"text": ""}\n')
    pairs = {"path": "pairs.jsonl", "fields": {"prompt": "q", "response": "a"}}
    sources = [{"path": "train.jsonl"}, pairs, {"path": "tokens.jsonl"}]
    write_settings(folder, train=sources, dev="plain.jsonl")
    by_origin = {
        f"{name}.jsonl:{line}": inspected("--record", f"{name}.jsonl:{line}")["record"]
        for name in ("pairs", "tokens", "plain")
        for line in (1, 2)
    }
    assert [report["number"] for report in by_origin.values()] == [16, 17, 18, 19, 20, 21]
    assert [report["split"] for report in by_origin.values()] == ["train"] * 4 + ["dev"] * 2
    assert shown_documents(by_origin["tokens.jsonl:1"]) == [([5, 6, 7], [0, 1, 1])]
    pair = expected_documents({"messages": turns("What?", "four")})
    assert shown_documents(by_origin["pairs.jsonl:1"]) == pair
    assert by_origin["plain.jsonl:1"]["state"] == "kept"
    for origin in ("pairs.jsonl:2", "tokens.jsonl:2", "plain.jsonl:2"):
        assert by_origin[origin]["state"] != "kept"
        assert by_origin[origin]["reason"]
        assert by_origin[origin]["text"]
    assert inspected("--html", "page.html")["splits"]["dev"]["records"] == 2
    words = command().stdout
    assert all(words.count(f"\n{path}.jsonl ") == 1 for path in ("train", "pairs", "tokens", "plain"))


@pytest.mark.parametrize("number", [1, 2])
def test_a_record_can_be_looked_at_where_none_can_be_used(folder: Path, number: int):
    write_records(folder, [{"messages": turns("a", "")}, {"messages": turns("b", "")}])
    report = inspected("--record", str(number))["record"]
    assert (report["state"], report["origin"]) == ("refused", f"train.jsonl:{number}")
    assert (report["reason"], report["number"]) == ("messages[1]: empty answer", number)
    assert inspected("--record", f"train.jsonl:{number}")["record"] == report
    assert command().exit_code == 3
    assert command("--record", "3").stderr.startswith("--record: no record has the number 3; ")
    assert inspected("--record", "1", "--html", "page.html")["html"] == "page.html"


def test_without_option_the_summary_and_samples_of_each_kind():
    shown = inspected()
    train = shown["splits"]["train"]
    assert (train["records"], train["kept"], train["dropped"], train["refused"]) == (15, 10, 2, 3)
    by_kind = {kind: sample["number"] for sample in shown["samples"] for kind in sample["kinds"]}
    assert by_kind.keys() == {
        *("shortest", "longest", "with tools", "several turns", "random", "refused", "dropped")
    }
    lengths = [len(expected_documents(record)[0][0]) for record in RECORDS[:10]]
    assert lengths[by_kind["shortest"] - 1] == min(lengths)
    assert lengths[by_kind["longest"] - 1] == max(lengths)
    assert (by_kind["with tools"], by_kind["several turns"]) == (10, 9)
    assert (by_kind["refused"], by_kind["dropped"]) == (12, 11)
    assert len(shown["stops_prepare"]) == 3
    assert inspected()["samples"] == shown["samples"]
    words = command().stdout
    assert "finetooth prepare stops at 3 records; the first: train.jsonl:12: messages[1]: empty" in words
    for sample in shown["samples"]:
        assert f"record {sample['number']}, {sample['origin']} (" in words


def test_what_stands_twice_stops_only_prepare(folder: Path):
    write_settings(folder, on_duplicate="error", on_bad_record="drop")
    shown = inspected()
    assert len(shown["stops_prepare"]) == 1
    assert "duplicate of an earlier record" in shown["stops_prepare"][0]
    assert shown["splits"]["train"]["kept"] == 10


def test_what_stands_on_one_line_of_a_list_is_shown_alone(folder: Path):
    Path(folder, "list.json").write_text(
        json.dumps([{"messages": turns(name, name)} for name in "ab"]) + "\n"
    )
    write_settings(folder, train="list.json", dev=None)
    assert [inspected("--record", f"list.json:{line}")["record"]["number"] for line in (1, 2)] == [1, 2]
    assert "user\nb<" in command("--record", "2").stdout.replace("↵", "")
    Path(folder, "list.json").write_text(json.dumps([{"messages": turns("a", "a")}, 7]) + "\n")
    assert inspected("--record", "list.json:2")["record"]["text"] is None


def test_records_that_prepare_drops_stop_nothing(folder: Path):
    write_settings(folder, on_bad_record="drop")
    assert inspected()["stops_prepare"] == []
    assert "finetooth prepare stops" not in command().stdout


def test_the_steps_of_an_epoch_train_every_document_once():
    steps = [inspected("--step", str(number))["step"] for number in range(1, 7)]
    assert {step["num_steps"] for step in steps} == {6}
    assert [step["epoch"] for step in steps] == [0, 0, 0, 1, 1, 1]
    for epoch in (steps[:3], steps[3:]):
        trained = [document for step in epoch for row in step["rows"] for document in row["documents"]]
        assert sorted(document["origin"] for document in trained) == sorted(
            f"train.jsonl:{number}" for number in range(1, 11)
        )
    for step in steps:
        documents = [document for row in step["rows"] for document in row["documents"]]
        assert step["num_tokens"] == sum(document["tokens"] for document in documents)
        assert step["total_loss_weight"] == sum(document["loss_weight"] for document in documents)
        assert all(row["fill"] == round(row["tokens"] / 200, 4) for row in step["rows"])


def test_the_ranks_share_a_step():
    alone = inspected("--step", "2")["step"]
    ranks = [inspected("--step", "2", "--rank", str(rank), "--world", "2")["step"] for rank in (0, 1)]

    def origins(step: dict[str, Any]) -> list[str]:
        return [document["origin"] for row in step["rows"] for document in row["documents"]]

    assert sorted(origins(ranks[0]) + origins(ranks[1])) == sorted(origins(alone))
    assert len(ranks[0]["rows"]) == len(ranks[1]["rows"])
    assert {rank["total_loss_weight"] for rank in ranks} == {alone["total_loss_weight"]}


def test_without_packing_rows_are_as_full_as_their_forward_pass():
    rows = inspected("training.packing=false", "training.rows_at_once=2", "--step", "1")["step"]["rows"]
    tokens = [row["tokens"] for row in rows]
    expected = [tokens[place] / max(tokens[place // 2 * 2 :][:2]) for place in range(len(rows))]
    assert [row["fill"] for row in rows] == [round(fill, 4) for fill in expected]
    assert min(expected) < 1


def test_a_row_shows_the_tokens_of_its_documents():
    shown = inspected("--step", "1", "--row", "1")
    origins = [document["origin"] for document in shown["step"]["rows"][0]["documents"]]
    for origin, document in zip(origins, shown["documents"], strict=True):
        record = RECORDS[int(origin.rpartition(":")[2]) - 1]
        assert (document["token_ids"], document["loss_weights"]) == expected_documents(record)[0]
    words = command("--step", "1", "--row", "1").stdout
    assert words.startswith(f"step 1 of 6, epoch 1: {shown['step']['num_documents']} documents, ")
    assert words.count("<|im_start|>assistant") >= len(origins)
    listed = command("--step", "1").stdout
    assert all(f"  {origin}: " in listed for origin in origins)
    assert "<|im_start|>" not in listed


def test_ids_stand_one_below_the_other():
    [(token_ids, loss_weights)] = expected_documents(RECORDS[0])
    lines = command("--record", "1", "--ids").stdout.splitlines()[4:]
    assert [int(line.split()[1]) for line in lines] == token_ids
    assert [line[16:20].strip() == "1" for line in lines] == [weight == 1 for weight in loss_weights]


BY_NUMBER = "give a number from 1 to 15, or a place such as train.jsonl:1"
BY_NAME = "name it as the ledger does, for instance train.jsonl:1, or by its number"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--record", "16"], f"no record has the number 16; {BY_NUMBER}"),
        (["--record", "0"], f"no record has the number 0; {BY_NUMBER}"),
        (["--record", "9" * 30], f"no record has the number {'9' * 30}; {BY_NUMBER}"),
        (["--record", "dev.jsonl:3"], f"no record stands at dev.jsonl:3; {BY_NAME}"),
        (["--step", "7"], "the schedule has no step 7; give a number from 1 to 6"),
        (
            ["--step", "1", "--rank", "2", "--world", "2"],
            "2 processes have no rank 2; give a rank from 0 to 1, or a larger --world",
        ),
        (["--step", "1", "--rank", "1"], "1 process has no rank 1; give --world"),
        (["--step", "1", "--row", "9"], "rank 0 has no row 9 in step 1; give a number from 1 to {rows}"),
        (["--rank", "1"], "belongs to a step; add --step, or leave it out"),
        (["--world", "2"], "belongs to a step; add --step, or leave it out"),
        (["--row", "1"], "belongs to a step; add --step, or leave it out"),
        (["--step", "1", "--record", "1"], "a record and a step at once; ask for one of them"),
        (
            ["--step", "1", "--html", "page.html"],
            "a page shows samples or one record, not a step; leave out --step, or leave out --html",
        ),
        (["--html", "none/page.html"], "there is no folder none; make it, or name another file"),
        (["--html", "tokenizer"], "tokenizer is a folder; name a file"),
    ],
)
def test_what_does_not_exist_is_one_sentence(arguments: list[str], message: str):
    rows = len(inspected("--step", "1")["step"]["rows"])
    place = "--rank" if "--rank" in arguments else arguments[-2]
    sentence = f"{place}: {message.format(rows=rows)}"
    result = command(*arguments)
    assert (result.exit_code, result.stderr, result.stdout) == (2, sentence + "\n", "")
    told = json.loads(command(*arguments, "--json").stdout)
    assert told == {"error": [sentence], "exit_code": 2}
    assert not list(Path().glob("*.html"))


def test_what_cannot_be_prepared_at_all_is_told_as_prepare_tells_it():
    Path("train.jsonl").unlink()
    result = command()
    assert result.exit_code == 3
    assert result.stderr.startswith("train.jsonl: no such file; ")


@pytest.mark.parametrize("no_color", [True, False])
def test_targets_are_bright_on_a_terminal_unless_it_has_no_colours(no_color: bool, folder: Path):
    variables = {"FORCE_COLOR": "1", "TERM": "xterm"} | ({"NO_COLOR": "1"} if no_color else {})
    shown = command("--record", "1", **variables).stdout
    assert ("\x1b[1;32m⟦" in shown) is not no_color
    assert "⟦" in shown


def test_inspect_needs_no_torch():
    code = (
        "import sys\nfrom finetooth.cli import app\n"
        "for options in (['--html', 'page.html'], ['--record', '1'], ['--step', '1']):\n"
        "    assert app(['inspect', 'run.yaml', *options], standalone_mode=False) in (None, 0)\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))\n"
    )
    variables = {**os.environ, "PYTHONPATH": str(SOURCES)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
