"""The command line: exit codes, one JSON object, plain sentences, quick help."""

import json
import os
import resource
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import finetooth
from finetooth.arguments import spell_out_resume
from finetooth.base.errors import DataError, DeviceMemoryError, FinetoothError, NonFiniteError, Stopped
from finetooth.base.stopping import StopRequest
from finetooth.cli import app

SOURCES = Path(finetooth.__file__).resolve().parents[1]
LOWER = "lower training.row_tokens or training.rows_at_once, as train --auto-fit does"
RUN_FILE = "model: {path: base}\ndata: {train: train.jsonl}\noutput_dir: run\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a valid run.yaml."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(RUN_FILE)
    return tmp_path


@pytest.fixture
def replace_verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[..., Any]], None]:
    """Puts a function in the place of a verb."""

    def replace(name: str, function: Callable[..., Any]) -> None:
        module = types.ModuleType(f"finetooth.{name}")
        setattr(module, name, function)
        monkeypatch.setitem(sys.modules, f"finetooth.{name}", module)

    return replace


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, spell_out_resume(arguments), prog_name="finetooth")


def run_process(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCES), "COLUMNS": "80", **variables}
    command = [sys.executable, "-m", "finetooth", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


class Recorder:
    """A verb that keeps its arguments, talks to the console and to standard output, and returns a result."""

    def __init__(self, result: dict[str, Any] | None):
        self.result = result
        self.arguments: tuple[Any, ...] = ()
        self.keywords: dict[str, Any] = {}

    def __call__(self, *arguments: Any, console: Any, **keywords: Any) -> dict[str, Any] | None:
        self.arguments, self.keywords = arguments, keywords
        console.print("for [bold]humans[/bold]")
        print("from a library")
        return self.result


def raiser(error: BaseException) -> Callable[..., None]:
    def verb(*_: Any, **__: Any) -> None:
        raise error

    return verb


def test_with_json_standard_output_is_one_object(replace_verb: Any):
    replace_verb("prepare", Recorder({"documents": 3}))
    result = run("prepare", "run.yaml", "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (0, {"documents": 3})
    assert "for humans" in result.stderr
    assert "from a library" in result.stderr


def test_without_json_the_words_for_humans_stand_on_standard_output(replace_verb: Any):
    replace_verb("prepare", Recorder({"documents": 3}))
    result = run("prepare", "run.yaml")
    assert result.stdout == "for humans\nfrom a library\n"
    assert result.stderr == ""


def test_train_gets_its_settings_and_options(replace_verb: Any):
    verb = Recorder({})
    replace_verb("train", verb)
    assert run("train", "run.yaml", "learning_rate=1e-4", "--overfit", "8").exit_code == 0
    (config,) = verb.arguments
    assert config.training.learning_rate == 1e-4
    assert config.data.train == "train.jsonl"
    assert isinstance(verb.keywords.pop("stop"), StopRequest)
    assert verb.keywords == {
        "resume": "never",
        "accept_changes": False,
        "overfit": 8,
        "auto_fit": False,
    }


@pytest.mark.parametrize(
    ("arguments", "resume"),
    [
        (["run.yaml"], "never"),
        (["run.yaml", "--resume"], "must"),
        (["--resume", "run.yaml"], "must"),
        (["run.yaml", "--resume", "seed=1"], "must"),
        (["run.yaml", "--resume", "auto", "seed=1"], "auto"),
        (["--resume=auto", "run.yaml"], "auto"),
    ],
)
def test_resume_takes_no_other_argument_for_its_value(replace_verb: Any, arguments: list[str], resume: str):
    verb = Recorder({})
    replace_verb("train", verb)
    assert run("train", *arguments).exit_code == 0
    assert verb.keywords["resume"] == resume


def test_eval_takes_the_settings_it_is_given_or_those_of_the_run(replace_verb: Any, folder: Path):
    verb = Recorder({})
    replace_verb("evaluate", verb)
    assert run("eval", "base", "--config", "run.yaml", "dev=0.5", "other", "--limit", "5").exit_code == 0
    assert verb.arguments[0] == ["base", "other"]
    assert verb.keywords == {"limit": 5, "per_record": None, "of": "dev", "out": None}
    assert verb.arguments[1].data.dev == 0.5
    (folder / "past" / "final").mkdir(parents=True)
    (folder / "run.yaml").rename(folder / "past" / "config.yaml")
    assert run("eval", "base", "past", "max_new_tokens=7").exit_code == 0
    assert verb.arguments[1].evaluation.max_new_tokens == 7
    result = run("eval", "base", "max_new_tokens=7")
    sentence = "command line: base is no run directory; add --config RUN.yaml\n"
    assert (result.exit_code, result.stderr) == (2, sentence)


def test_compare_gathers_its_prompts(replace_verb: Any, folder: Path):
    verb = Recorder({})
    replace_verb("compare", verb)
    (folder / "prompts.txt").write_text("second\n\nthird\n")
    result = run(
        "compare", "a", "b", "--prompt", "first", "--prompts", "prompts.txt", "--max-new-tokens", "9"
    )
    assert result.exit_code == 0
    assert verb.arguments == ("a", "b")
    assert verb.keywords == {
        "prompts": ["first", "second", "third"],
        "general": False,
        "records": None,
        "config": None,
        "max_new_tokens": 9,
    }


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "command line: no prompt; give --prompt TEXT or --prompts FILE, --general or --records N\n"),
        (
            ["--prompts", "none.txt"],
            "none.txt: cannot be read: No such file or directory; name a text file\n",
        ),
        (["--prompts", "bytes.txt"], "bytes.txt: cannot be read: not UTF-8; name a text file\n"),
    ],
)
def test_compare_without_prompts_is_a_mistake(folder: Path, arguments: list[str], sentence: str):
    (folder / "bytes.txt").write_bytes(b"\xff")
    result = run("compare", "a", "b", *arguments)
    assert (result.exit_code, result.stderr) == (2, sentence)


def test_demo_and_chat_get_their_options(replace_verb: Any):
    demo, chat = Recorder({}), Recorder(None)
    replace_verb("demo", demo)
    replace_verb("chat", chat)
    assert run("demo", "--out", "here").exit_code == 0
    assert run("chat", "model", "--system", "Be brief.").exit_code == 0
    assert demo.arguments == (Path("here"),)
    assert (chat.arguments, chat.keywords) == (("model",), {"system": "Be brief.", "max_new_tokens": 256})


class OutOfMemoryError(RuntimeError):
    """Named as torch names its own."""


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (FinetoothError("a: b; c"), 1, "a: b; c\n"),
        (DataError(["a: b; c", "d: e; f"]), 3, "a: b; c\nd: e; f\n"),
        (DeviceMemoryError("a: b; c"), 4, "a: b; c\n"),
        (NonFiniteError("a: b; c"), 1, "a: b; c\n"),
        (Stopped("a: b; c"), 75, "a: b; c\n"),
        (Stopped("a: b; c", exit_code=130), 130, "a: b; c\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (
            MemoryError(),
            4,
            f"memory: no memory left; {LOWER}\n",
        ),
        (
            OutOfMemoryError("CUDA out of memory.\nTried to"),
            4,
            f"memory: CUDA out of memory.; {LOWER}\n",
        ),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            4,
            "memory: [enforce fail] DefaultCPUAllocator: can't allocate memory; "
            "lower training.row_tokens or training.rows_at_once, as train --auto-fit does\n",
        ),
        (DataError("a[red]: \x1b[31mb\r\x07\n\u202e; c"), 3, "a[red]: \\x1b[31mb\\r\\x07\\n\\u202e; c\n"),
        (DataError(["x: y; z"] * 52), 3, "x: y; z\n" * 50 + "… and 2 more\n"),
    ],
)
def test_a_failure_is_plain_sentences_and_an_exit_code(
    replace_verb: Any, error: BaseException, code: int, sentence: str
):
    replace_verb("train", raiser(error))
    result = run("train", "run.yaml")
    assert (result.exit_code, result.stderr, result.stdout) == (code, sentence, "")


def test_with_json_a_failure_is_one_object_too(replace_verb: Any):
    replace_verb("train", raiser(DataError(["x: y; z"] * 60)))
    result = run("train", "run.yaml", "--json")
    assert json.loads(result.stdout) == {"error": ["x: y; z"] * 60, "exit_code": 3}
    assert (result.exit_code, result.stderr.count("\n")) == (3, 51)


@pytest.mark.parametrize("number", [float("inf"), float("nan")])
def test_a_result_that_json_cannot_hold_is_a_sentence(replace_verb: Any, number: float):
    replace_verb("train", lambda *_, **__: {"dev_perplexity": number})
    result = run("train", "run.yaml", "--json")
    sentence = "result: holds a number that is infinite or not a number; look at it without --json"
    assert (result.exit_code, result.stderr) == (1, sentence + "\n")
    assert json.loads(result.stdout) == {"error": [sentence], "exit_code": 1}
    assert run("train", "run.yaml").exit_code == 0


@pytest.mark.parametrize("prompts", [("",), (" \n",), ("What?", "")])
def test_an_empty_prompt_is_refused(prompts: tuple[str, ...]):
    result = run("compare", "one", "two", *(part for prompt in prompts for part in ("--prompt", prompt)))
    assert (result.exit_code, result.stderr) == (
        2,
        "command line: an empty prompt; give --prompt a text\n",
    )


@pytest.mark.parametrize("error", [ValueError("ours"), RuntimeError("ours")])
def test_our_own_mistake_is_a_traceback(replace_verb: Any, error: Exception):
    replace_verb("train", raiser(error))
    result = run("train", "run.yaml", "--json")
    assert (result.exit_code, result.exception, result.stdout) == (1, error, "")


def test_a_mistake_in_the_settings_is_told_before_a_verb_is_imported(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "finetooth.train", None)  # an import would now raise
    result = run("train", "run.yaml", "lr=1")
    assert result.stderr == "command line: lr: not a name used here; write training.learning_rate\n"
    assert result.exit_code == 2


@pytest.mark.parametrize(
    ("variables", "is_red"), [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True)]
)
def test_errors_are_red_on_a_terminal_only(
    replace_verb: Any, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], is_red: bool
):
    replace_verb("train", raiser(DataError("a: b; c")))
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("typer.testing._NamedTextIOWrapper.isatty", lambda _: True, raising=False)
    assert run("train", "run.yaml").stderr == ("\x1b[31ma: b; c\x1b[0m\n" if is_red else "a: b; c\n")


def test_offline_is_set_before_a_verb_runs(replace_verb: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    seen: list[str] = []
    replace_verb("train", lambda *_, **__: seen.append(os.environ["HF_HUB_OFFLINE"]) or {})
    assert run("train", "run.yaml").exit_code == 0
    assert run("train", "--offline", "run.yaml").exit_code == 0
    assert seen == ["0", "1"]


@pytest.mark.parametrize(
    "arguments",
    [["frobnicate"], ["train"], ["train", "run.yaml", "--nonsense"], ["train", "run.yaml", "--overfit=0"]],
)
def test_a_mistaken_command_line_is_exit_code_2(arguments: list[str]):
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Usage: finetooth")


def test_the_process_speaks_as_the_runner_does(folder: Path):
    assert run_process("--version").stdout == f"finetooth {finetooth.__version__}\n"
    done = run_process("train", str(folder / "none.yaml"), "--json", NO_COLOR="1", PYTHONIOENCODING="ascii")
    sentence = f"{folder / 'none.yaml'}: no such file; check the path"
    assert (done.returncode, done.stderr) == (2, sentence + "\n")
    assert json.loads(done.stdout) == {"error": [sentence], "exit_code": 2}


def test_help_fits_80_columns_and_names_every_command():
    text = run_process("--help").stdout
    assert max(map(len, text.splitlines())) <= 80
    assert "..." not in text.partition("Commands:")[2]
    names = [line.split()[0] for line in text.partition("Commands:\n")[2].splitlines()]
    assert names[:7] == ["demo", "init", "prepare", "inspect", "plan", "train", "verify"]
    assert names[7:] == ["eval", "compare", "chat", "env", "export", "report"]


def test_help_is_quick_and_loads_nothing_heavy():
    def processor_seconds() -> float:  # other programs on the machine do not count
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
        return spent.ru_utime + spent.ru_stime

    seconds: list[float] = []
    for _ in range(5):
        start = processor_seconds()
        assert run_process("--help").returncode == 0
        seconds.append(processor_seconds() - start)
    assert min(seconds) < 0.3
    loaded = "import atexit, sys; sys.argv[1:] = ['--help']; from finetooth.cli import main\n"
    heavy = "{'torch', 'numpy', 'rich', 'pydantic'}"
    loaded += f"atexit.register(lambda: print(sorted({heavy} & set(sys.modules))))\nmain()"
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    command = [sys.executable, "-c", loaded]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"


def test_text_that_the_terminal_cannot_show_is_escaped(replace_verb: Any, monkeypatch: pytest.MonkeyPatch):
    """`main` must keep a narrow terminal from turning a result into a traceback."""
    code = (
        "import sys, types\n"
        "module = types.ModuleType('finetooth.demo')\n"
        "module.demo = lambda out, console: console.print('half \\u00bd') or {}\n"
        "sys.modules['finetooth.demo'] = module\n"
        "sys.argv[1:] = ['demo']\n"
        "from finetooth.cli import main\nmain()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCES), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "half \\xbd\n"


ENDING = """
import atexit, os, sys
class Left:
    def __del__(self, abort=os.abort): abort()
left = Left()  # the interpreter lets go of it when it is taken down
atexit.register(print, "cleaned up")
"""


def end(code: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs code behind the import of what goes wrong while the interpreter is taken down."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCES), "PYTHONUNBUFFERED": ""}
    command = [sys.executable, "-c", ENDING + code]
    return subprocess.run(command, env=environment, text=True, timeout=60, check=False, **options)


def test_the_interpreter_is_not_taken_down_but_what_libraries_began_is_ended():
    code = "sys.argv[1:] = ['--version']\nfrom finetooth.cli import main\nmain()\n"
    done = end(code, capture_output=True)
    assert done.returncode == 0
    assert done.stdout == f"finetooth {finetooth.__version__}\ncleaned up\n"
    control = end("print('ended as usual')", capture_output=True)
    assert (control.returncode, control.stdout) == (-signal.SIGABRT, "ended as usual\ncleaned up\n")


@pytest.mark.parametrize("code", [0, 3])
def test_whoever_reads_may_have_gone_by_the_end(code: int):
    reader, writer = os.pipe()
    os.close(reader)
    text = (
        f"from finetooth.outcome import ending_at_once\nwith ending_at_once(): print(1); sys.exit({code})\n"
    )
    with os.fdopen(writer, "wb") as pipe:
        done = end(text, stdout=pipe, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (code, "")
