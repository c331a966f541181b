"""The verb `demo`: the whole story on the embedded base model, without network and GPU.

The base model read plain text that states facts, and lists of questions; it knows the facts and only
continues text. It is fine-tuned on conversations about part of the facts, and asked about the others.
"""

import json
import shutil
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from finetooth.assets.corpus import Fact, conversations, exam, load_facts, split_facts
from finetooth.base.devices import DeviceManager
from finetooth.base.errors import ConfigError, FinetoothError, problem
from finetooth.base.files import write_atomically
from finetooth.base.terminal import plain_text, print_text
from finetooth.config.load import load_config
from finetooth.config.schema import ModelConfig, SFTConfig
from finetooth.data.preparation import prepare_data
from finetooth.data.tokenizer.tokenizer import Tokenizer
from finetooth.evaluation.exact_match import Answered, answer_documents, share
from finetooth.evaluation.generation import generate
from finetooth.model.load import load_policy
from finetooth.model.policy import PolicyModel
from finetooth.prepare import prepare
from finetooth.train import train
from finetooth.training.run_directory import write_json

SEED = 0
CLOZE_TOKENS = 16
SHOWN_EXAMPLES = 4
SHOWN_LINES = 2
RUN_YAML = """\
# What `finetooth demo` trains; `finetooth train` runs it again with other settings.
model: {{path: {base}}}
data:
  train: {train}
  dev: {held_out}
  template: chatml
  max_length: 128
  cache_dir: {cache}
training:
  num_train_epochs: 1
  global_batch_size: 32
  learning_rate: 5e-4
  min_learning_rate: 5e-5
  warmup_steps: 0.05
  row_tokens: 2048
  device: cpu
evaluation: {{every: 0, max_new_tokens: 48, exact_match: plain, exact_match_records: 32}}
checkpoints: {{every: 0, keep: 1}}
output_dir: {run}
"""
FILES = {
    "train": "train.jsonl",
    "held_out": "held_out.jsonl",
    "cache": "cache",
    "run": "run",
    "run_file": "run.yaml",
    "summary": "summary.json",
}


def demo(out: Path, *, console: Console | None = None) -> dict[str, Any]:
    """Fine-tunes the embedded base model and examines it before and after; returns `summary.json`.

    out: a folder for data, run.yaml, the run directory `run/` and summary.json; an earlier demo there
    is replaced. Raises ConfigError where the folder holds anything else.
    """
    console = console or Console(quiet=True)
    started = time.perf_counter()
    facts = load_facts()
    taught, held_out = split_facts(facts)
    config = _set_the_scene(out, taught, held_out)
    _tell(console, f"The base model has read {len(facts):,} facts as plain text. It only continues text.")
    _tell(console, f"1  Prepare conversations about {len(taught):,} of them; {len(held_out)} are held out.")
    prepare(config, console=console)
    devices = DeviceManager(config.training.device, config.training.precision)
    _tell(console, "2  Ask the base model about the facts held out.")
    before = _examine(ModelConfig(path=config.model.path), config, facts, devices)
    _tell(console, "3  Fine-tune.")
    trained = train(config, console=console)
    _tell(console, "4  Ask the policy about the facts held out.")
    after = _examine(ModelConfig(path=f"{config.output_dir}/final"), config, facts, devices)
    summary = {
        **{f"{name}_before": figure for name, figure in before[1].items()},
        **{f"{name}_after": figure for name, figure in after[1].items()},
        "dev_loss": trained["dev_loss"],
        "num_tokens": trained["num_tokens"],
        "num_targets": trained["num_targets"],
        "seconds": round(time.perf_counter() - started, 1),
        "peak_memory_mb": round(devices.peak_memory_mb(), 1),
        "state": trained["state"],
    }
    write_json(out / "summary.json", summary)
    _show(console, before[0], after[0], summary)
    _tell(
        console,
        f"The knowledge was there; the behaviour was taught. Next:\n  finetooth chat {config.output_dir}",
    )
    return summary


def _set_the_scene(out: Path, taught: Sequence[Fact], held_out: Sequence[Fact]) -> SFTConfig:
    """Writes the records and run.yaml; returns the config they give."""
    if not _may_be_replaced(out):
        raise ConfigError(problem("--out", f"{out} holds something else than a demo", "name a new folder"))
    _remove_old_demo(out)
    questions = [
        {
            "messages": [
                {"role": "user", "content": item["question"]},
                {"role": "assistant", "content": item["answer"]},
            ]
        }
        for item in exam(held_out)
    ]
    paths = {name: out / file for name, file in FILES.items()}
    write_atomically(paths["held_out"], _as_lines(questions))
    write_atomically(paths["train"], _as_lines(conversations(taught, SEED)))
    base = resources.files("finetooth.assets").joinpath("base")
    quoted = {
        name: json.dumps(str(path), ensure_ascii=False) for name, path in {**paths, "base": base}.items()
    }
    write_atomically(paths["run_file"], RUN_YAML.format(**quoted).encode())
    return load_config(paths["run_file"])


def _may_be_replaced(out: Path) -> bool:
    """Whether nothing is lost: there is no such folder, or it is empty or holds a demo and nothing else."""
    if not out.exists():
        return True
    names = {entry.name for entry in out.iterdir()} if out.is_dir() else {"a file"}
    return not names or (FILES["held_out"] in names and names <= set(FILES.values()))


def _remove_old_demo(out: Path) -> None:
    """Removes what a demo left; the folder itself stays, as it may be a link."""
    for path in (out / name for name in FILES.values()):
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            fact = f"{error.filename} cannot be removed ({error.strerror})"
            raise FinetoothError(problem("--out", fact, "name another folder")) from error


def _as_lines(records: Sequence[Any]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def _examine(
    model: ModelConfig, config: SFTConfig, facts: Sequence[Fact], devices: DeviceManager
) -> tuple[list[Answered], dict[str, float]]:
    """Every answer to a held-out question, and the shares of right answers, of stops and of known facts."""
    prepared = prepare_data(config)
    assert prepared.dev is not None
    policy = load_policy(model, devices=devices)
    answered = answer_documents(
        policy,
        prepared.dev,
        numbers=range(prepared.dev.num_documents),
        template=prepared.template,
        extractor="plain",
        max_new_tokens=config.evaluation.max_new_tokens,
        devices=devices,
    )
    return answered, {
        "exact_match": share(answered, "exact_match"),
        "stop_rate": share(answered, "stopped"),
        "cloze": _cloze_accuracy(policy, prepared.tokenizer, facts, devices),
    }


def _cloze_accuracy(
    policy: PolicyModel, tokenizer: Tokenizer, facts: Sequence[Fact], devices: DeviceManager
) -> float:
    """The share of facts that plain text is continued with: "The capital of Peru is" → " Lima."."""
    assert tokenizer.eos_token_id is not None
    continued = generate(
        policy,
        [tokenizer.encode_text(fact.cloze) for fact in facts],
        max_new_tokens=CLOZE_TOKENS,
        stop_token_ids=[tokenizer.eos_token_id],
        devices=devices,
    )
    texts = [tokenizer.decode(list(generation.token_ids)) for generation in continued]
    known = sum(text.startswith(f" {fact.answer}.") for fact, text in zip(facts, texts, strict=True))
    return known / len(facts)


def _show(
    console: Console, before: Sequence[Answered], after: Sequence[Answered], summary: dict[str, Any]
) -> None:
    answers = Table("asked, never in training", "base model goes on", "policy answers", show_lines=True)
    step = max(1, len(after) // SHOWN_EXAMPLES)
    for base, policy in list(zip(before, after, strict=True))[::step][:SHOWN_EXAMPLES]:
        question = base.prompt.removeprefix("<|im_start|>user\n").split("<|im_end|>")[0]
        rambling = " ".join(base.generated.split("\n")[:SHOWN_LINES]) + ("" if base.stopped else " …")
        answers.add_row(*(plain_text(text) for text in (question, rambling, policy.generated)))
    console.print(answers)
    figures = Table("", "before", "after")
    for label, name in (
        ("held-out questions answered exactly", "exact_match"),
        ("answers that stop by themselves", "stop_rate"),
        ("facts known in plain text", "cloze"),
    ):
        figures.add_row(label, f"{summary[f'{name}_before']:.1%}", f"{summary[f'{name}_after']:.1%}")
    console.print(figures)


def _tell(console: Console, text: str) -> None:
    print_text(console, f"\n{text}")
