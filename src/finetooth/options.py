"""Every argument and option of the command line: its type, the values it takes, and what help says of it.

Those that several commands share come first, then those of each command. Defaults stand with the commands.
"""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from finetooth import __version__
from finetooth.shells import Shell, complete_setting, complete_setting_behind_target, script_for


def _print_version(asked: bool) -> None:
    if asked:
        print(f"finetooth {__version__}")
        raise typer.Exit


def _print_completion(shell: Shell | None) -> None:
    if shell is not None:
        print(script_for(shell), end="")
        raise typer.Exit


def _go_offline(asked: bool) -> None:
    if asked:
        os.environ["HF_HUB_OFFLINE"] = "1"


# finetooth itself
Version = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
]
Completion = Annotated[
    Shell | None,
    typer.Option(
        callback=_print_completion, is_eager=True, help="Print the script with which a shell completes."
    ),
]

# shared
RunFile = Annotated[Path, typer.Argument(metavar="RUN.yaml", help="File with the settings of the run.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Settings that win over the file: learning_rate=1e-4",
        autocompletion=complete_setting,
    ),
]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Offline = Annotated[
    bool, typer.Option("--offline", callback=_go_offline, is_eager=True, help="Fetch nothing from the hub.")
]
_WORLD = typer.Option(min=1, metavar="W", help="Number of ranks.")

# demo
DemoFolder = Annotated[Path, typer.Option(help="Folder the demo writes to.")]


# init
class What(StrEnum):
    """What `init --preset` trains."""

    FULL = "full"
    LORA = "lora"
    QLORA = "qlora"


Data = Annotated[
    str, typer.Argument(metavar="DATA", help="File, folder or pattern of records, or hf://NAME.")
]
Base = Annotated[
    str, typer.Option(metavar="M", help="Base model: folder, hub name, .pt file; or a config.json.")
]
Preset = Annotated[
    What | None, typer.Option(show_default=False, help="What is trained; default: what memory holds.")
]
NewRunFile = Annotated[Path, typer.Option(metavar="FILE", help="The file to write.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the file if it is there already.")]


# prepare
class Layout(StrEnum):
    """How `prepare --to` writes documents for other systems."""

    H5 = "h5"
    BIN = "bin"
    JSONL = "jsonl"


ToLayout = Annotated[
    Layout | None,
    typer.Option(show_default=False, help="Write the documents for other systems besides; needs --out."),
]
LayoutFolder = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder that --to writes; must not exist yet.")
]
RowLength = Annotated[int, typer.Option(min=2, max=2**22, help="Tokens per row of --to h5.")]

# inspect
Record = Annotated[
    str | None,
    typer.Option(metavar="N", help="One record: its number from 1, or FILE:LINE as the ledger has it."),
]
Step = Annotated[int | None, typer.Option(min=1, metavar="K", help="The documents and rows of this update.")]
Rank = Annotated[
    int | None, typer.Option(min=0, metavar="R", help="Of the step, the rows of this rank, from 0.")
]
WorldOfStep = Annotated[int | None, _WORLD]
Row = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Of the step, the tokens of this row, from 1.")
]
Ids = Annotated[bool, typer.Option("--ids", help="One line per token, with its id.")]
Page = Annotated[Path | None, typer.Option(metavar="FILE", help="Write samples, or the record, as a page.")]

# plan
World = Annotated[int, _WORLD]
GpuMemory = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Memory of each GPU: 80GB. Default: what is here.")
]
Measure = Annotated[
    bool, typer.Option("--measure", help="Try the run out for a minute or two; tell its memory and time.")
]


# train
class Resume(StrEnum):
    """What `train` does where the run directory already holds a run."""

    NEVER = "never"
    MUST = "must"
    AUTO = "auto"


ToResume = Annotated[
    Resume,
    typer.Option(
        metavar="[auto]",
        show_default=False,
        help="Go on with the run in output_dir; auto starts it if there is none.",
    ),
]
AcceptChanges = Annotated[
    bool,
    typer.Option("--accept-changes", help="Go on although settings or records changed; it is recorded."),
]
Overfit = Annotated[int | None, typer.Option(min=1, metavar="N", help="Train on the first N documents only.")]
NumProcesses = Annotated[
    int, typer.Option(min=1, metavar="N", help="Share the work among N processes of this machine.")
]
AutoFit = Annotated[
    bool, typer.Option("--auto-fit", help="Shorten rows that the device's memory does not hold.")
]


# eval
class Records(StrEnum):
    """Whose records `eval --per-record` names."""

    DEV = "dev"
    TRAIN = "train"


Targets = Annotated[
    list[str],
    typer.Argument(
        metavar="TARGET... [KEY=VALUE...]",
        help="Run directories, checkpoints, model folders; settings that win over those of the run.",
        autocompletion=complete_setting_behind_target,
    ),
]
SettingsFile = Annotated[
    Path | None, typer.Option(metavar="RUN.yaml", help="Settings; by default those of the run.")
]
Limit = Annotated[int | None, typer.Option(min=1, metavar="N", help="Answer only N of the dev records.")]
PerRecord = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Name the N records with the highest loss.")
]
OfRecords = Annotated[
    Records | None,
    typer.Option(show_default=False, help="Whose records --per-record names; default: dev."),
]
AnswersFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write every answer to it, as JSON lines.")
]

# compare
_COMPARED = "Run directory, checkpoint or model folder."
First = Annotated[str, typer.Argument(metavar="A", help=_COMPARED)]
Second = Annotated[str, typer.Argument(metavar="B", help=_COMPARED)]
Prompts = Annotated[
    list[str] | None, typer.Option(metavar="TEXT", help="A prompt; may be given several times.")
]
PromptsFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="A text file with one prompt per line.")
]
General = Annotated[
    bool, typer.Option("--general", help="Ask general prompts; tell how far B has moved from A.")
]
ChangedRecords = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Name N dev records that got better, N worse.")
]
RecordsFile = Annotated[
    Path | None, typer.Option(metavar="RUN.yaml", help="Whose records; by default those of the run.")
]

# chat
Target = Annotated[str, typer.Argument(metavar="RUN_OR_MODEL", help="Run directory or model folder.")]
System = Annotated[str | None, typer.Option(metavar="TEXT", help="System text.")]


# export
class Form(StrEnum):
    """What `export --to` writes."""

    FOLDER = "folder"
    ADAPTER = "adapter"
    MERGED = "merged"
    PT = "pt"


class DType(StrEnum):
    """The type in which `export` writes parameters."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


Exported = Annotated[
    str, typer.Argument(metavar="RUN_OR_PT", help="Directory of a finished run, or a .pt file.")
]
ToForm = Annotated[
    Form, typer.Option(help="All parameters; an adapter, alone or in its base; pt: as the base was.")
]
ExportFolder = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder to write; must not exist. Default: RUN/export/FORM."),
]
WrittenType = Annotated[DType, typer.Option(help="The type of the parameters.")]
ShardSize = Annotated[str, typer.Option(metavar="SIZE", help="Most that one file holds.")]
Verify = Annotated[
    bool, typer.Option("--verify", help="Load what was written in a fresh process; compare it.")
]
TokenizerFolder = Annotated[
    str | None, typer.Option(metavar="FOLDER", help="Tokenizer to put beside the model of a .pt file.")
]

# report
Runs = Annotated[list[str], typer.Argument(metavar="RUN...", help="Run directories.")]
ReportFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="The page. Default: RUN/report.html, comparison.html.")
]
