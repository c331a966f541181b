"""Records, names and answers full of control characters drive no terminal, whichever command prints them."""

import json
import re
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path

import pytest
from tests.small_run import write_run
from typer.testing import CliRunner, Result

from finetooth.cli import app
from finetooth.data.records import Message
from finetooth.evaluation.speaker import Reply, Speaker

# ANSI in C0 and C1 form, a title, bell, carriage return, backspace, bidi overrides and isolates, zero-width
# characters, a soft hyphen, tags, variation selectors, a filler, a lone null, line separators, private use.
HOSTILE = (
    "\x1b[31m\x1b]0;t\x07\x9b2J\r\x08\x7f\x00\u202a\u202b\u202d\u202e\u202c\u2066\u2067\u2068\u2069\u200e\u061c"
    "\u200b\u2060\ufeff\u00ad\U000e0041\U000e0100\u115f\u3164\u2028\u2029\x85\ue000[bold red]x[/] ⟦y⟧"
)
NAME = "\x1b[31m\u202e[red]\n\x9b1mrecords"
LONG = "a" * 3000


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run whose records, file and folder names, and fields are hostile; some records cannot be used."""
    folder = tmp_path_factory.mktemp("hostile")
    with chdir(folder):
        write_run(
            folder,
            data={"train": f"{NAME}.jsonl", "max_length": 4000, "on_bad_record": "drop", "on_leak": "drop"},
            training={"row_tokens": 4000, "max_steps": 2},
            evaluation={"every": 0, "exact_match": "plain", "max_new_tokens": 2},
        )
        good = [{"prompt": f"{HOSTILE}{n}", "response": f"{HOSTILE} four", HOSTILE: n} for n in range(12)]
        bad = [{"prompt": HOSTILE, HOSTILE: ""}, {"prompt": "", "response": HOSTILE}]
        records = [*good, good[0], *bad, {"prompt": LONG, "response": LONG}]
        lines = [json.dumps(record) for record in records]
        lines += ['{"prompt": "' + "\u202e\x9b2J" + '", "response": NaN}', '{"\u202e": 1, "\u202e": 1}']
        (folder / f"{NAME}.jsonl").write_text("".join(line + "\n" for line in lines))
        settings = json.loads((folder / "run.yaml").read_text()) | {"output_dir": f"{NAME}run"}
        (folder / "run.yaml").write_text(json.dumps(settings))
        yield folder


def command(*arguments: str, typed: str | None = None) -> Result:
    result = CliRunner().invoke(
        app, arguments, input=typed, prog_name="finetooth", env={"COLUMNS": "120", "NO_COLOR": "1"}
    )
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def harmful(text: str) -> set[str]:
    """Characters that a terminal would act on, or that show nothing of themselves."""
    unseen = {"\u115f", "\u3164", *map(chr, range(0xE0100, 0xE01F0))}
    kinds = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
    return {c for c in text if c != "\n" and (unicodedata.category(c) in kinds or c in unseen)}


def require_harmless(result: Result) -> None:
    assert harmful(result.stdout + result.stderr) == set()


@pytest.fixture(scope="module")
def trained(folder: Path) -> str:
    """The run directory, after a training whose output is harmless too."""
    result = command("train", "run.yaml")
    assert result.exit_code == 0, result.stderr
    require_harmless(result)
    assert "\\x1b[31m\\u202e[red]\\n\\x9b1mrecordsrun" in result.stdout
    return f"{NAME}run"


def test_the_check_sees_what_is_harmful():
    """Negative control."""
    assert harmful(HOSTILE) >= {
        "\x1b",
        "\x07",
        "\x9b",
        "\r",
        "\u202e",
        "\u2066",
        "\u200b",
        "\U000e0100",
        "\u3164",
    }
    assert harmful("plain, naïve, 日本語 ⟦x⟧\n") == set()


def test_prepare():
    for _ in range(2):  # as it is made, and from the cache
        result = command("prepare", "run.yaml")
        assert result.exit_code == 0, result.stderr
        require_harmless(result)
    assert "\\x1b[31m\\u202e[red]\\n\\x9b1mrecords.jsonl" in result.stdout
    told = json.loads(command("prepare", "run.yaml", "--json").stdout)
    ledger = Path(told["ledger"]).read_bytes()
    assert ledger.isascii()
    assert harmful(ledger.decode()) == set()
    assert all(json.loads(line)["source"] == f"{NAME}.jsonl" for line in ledger.splitlines())


def test_prepare_on_a_terminal(tmp_path: Path):
    """There, what is at work is shown while it lasts, and colours are the only escapes."""
    settings = {"COLUMNS": "120", "FORCE_COLOR": "1", "TERM": "xterm", "FINETOOTH_CACHE": str(tmp_path)}
    result = CliRunner().invoke(app, ["prepare", "run.yaml"], prog_name="finetooth", env=settings)
    assert result.exit_code == 0
    assert "Preparing \\x1b[31m\\u202e[red]" in result.stdout
    assert harmful(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", result.stdout)) == set()


def test_without_escapes_prepare_would_drive_the_terminal(monkeypatch: pytest.MonkeyPatch):
    """Negative control."""
    monkeypatch.setattr("finetooth.base.terminal.make_visible", lambda text, keep="": text)
    assert "\x9b" in harmful(command("prepare", "run.yaml").stdout)


def test_prepare_where_records_are_errors():
    result = command("prepare", "run.yaml", "data.on_bad_record=error")
    assert result.exit_code == 3
    require_harmless(result)
    assert len(result.stderr.splitlines()) == 4
    assert "[red]" in result.stderr


@pytest.mark.parametrize(
    "options",
    [
        *(
            [],
            ["--ids"],
            ["--record", "1"],
            ["--record", "1", "--ids"],
            ["--record", "13"],
            ["--record", "14"],
        ),
        *(["--record", "15"], ["--record", "16"], ["--record", "17"], ["--record", "18"]),
        *(["--step", "1"], ["--step", "1", "--row", "1"], ["--html", "page.html"], ["--record", HOSTILE]),
    ],
)
def test_inspect(options: list[str]):
    result = command("inspect", "run.yaml", *options)
    assert result.exit_code == (2 if HOSTILE in options else 0), result.stderr
    require_harmless(result)
    assert harmful(command("inspect", "run.yaml", *options, "--json").stdout) == set()


def test_train(trained: str):
    lines = (Path(trained) / "ledger.jsonl").read_bytes() + (Path(trained) / "metrics.jsonl").read_bytes()
    assert lines.isascii()
    again = command("train", "run.yaml")
    assert again.exit_code != 0
    require_harmless(again)
    require_harmless(command("train", "run.yaml", "--resume", "auto"))


def test_report(trained: str):
    result = command("report", trained)
    assert result.exit_code == 0, result.stderr
    require_harmless(result)
    assert harmful((Path(trained) / "report.html").read_text(encoding="utf-8")) == set()
    assert (Path(trained) / "data.json").read_bytes().isascii()
    assert harmful(command("report", trained, "--json").stdout) == set()


def test_eval(trained: str):
    result = command("eval", trained)
    assert result.exit_code == 0, result.stderr
    require_harmless(result)
    assert (Path(trained) / "samples" / "eval.jsonl").read_bytes().isascii()


def test_compare(trained: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Speaker, "reply", hostile_reply)
    result = command("compare", trained, "base", "--prompt", HOSTILE)
    assert result.exit_code == 0, result.stderr
    require_harmless(result)


def test_chat(trained: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Speaker, "say", hostile_say)
    result = command("chat", trained, typed="What?\n/reset\nWhat?\n")
    assert result.exit_code == 0, result.stderr
    require_harmless(result)
    assert result.stdout.count("\\x1b[31m\\x1b]0;t\\x07") == 2


@pytest.mark.parametrize("verb", ["eval", "compare", "chat"])
def test_a_name_of_nothing(verb: str):
    arguments = (NAME, NAME, "--prompt", "a") if verb == "compare" else (NAME,)
    result = command(verb, *arguments)
    assert result.exit_code != 0
    require_harmless(result)


def hostile_reply(self: Speaker, conversations: list[list[Message]], *, max_new_tokens: int) -> list[Reply]:
    return [Reply(HOSTILE, stopped=True) for _ in conversations]


def hostile_say(
    self: Speaker, messages: list[Message], *, max_new_tokens: int, on_text: Callable[[str], object]
) -> Reply:
    on_text(HOSTILE)
    return Reply(HOSTILE, stopped=True)
