"""What a run leaves for the systems that its base came from: their checkpoints and their logs.

ConfigurableGPT   ckpt_000200.pt, run_20260131_120000.json
per-head GPT      sft.pt
LLaMA             sft.pth
any other base    SFT_step_200/model.pt and metadata.json, training_history.json
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from finetooth.base.distributed import Ranks
from finetooth.base.files import new_folder
from finetooth.config.schema import SFTConfig
from finetooth.evaluation.run_files import Environment, Summary, read_object, require_file
from finetooth.model.legacy.configurable_gpt import CONFIGURABLE_GPT
from finetooth.model.legacy.head_bias import GPT2HeadBiasForCausalLM
from finetooth.model.legacy.layouts import Settings, WrittenBy
from finetooth.model.legacy.origin import LegacyOrigin, origin_of
from finetooth.model.legacy.reading import FILE_NAME
from finetooth.model.legacy.writing import legacy_content, plain_state, save_torch_file
from finetooth.model.policy import PolicyModel
from finetooth.training.dealt_files import gather_whole
from finetooth.training.metrics import MetricsLog


def has_twin(model: PreTrainedModel) -> bool:
    """Whether plain transformers has a model that computes what this one does."""
    return not isinstance(model, GPT2HeadBiasForCausalLM)


def save_for_no_twin(
    policy: PolicyModel, folder: Path, run: Path, ranks: Ranks, *, step: int | None = None
) -> None:
    """Writes model.pt, in the layout of the base, and generation_config.json; all ranks call it.

    run: the run directory; step: after which the policy is as it is, default: the last one
    """
    parameters = gather_whole(policy, ranks)
    if ranks.is_first:
        origin = origin_of(policy.model.config)
        assert origin is not None, "a model without a twin came from a .pt file"
        name = "generation_config.json"
        (folder / name).write_bytes(policy.settings_files()[name])
        facts = facts_of(run, step=step)
        save_torch_file(folder / FILE_NAME, legacy_content(origin, parameters, facts))


def write_pt(run: Path, out: Path, *, model: PreTrainedModel, config: SFTConfig) -> list[Path]:
    """Writes the policy of a run, and its log, in the layout that its base came from; returns the files.

    run: the run directory; model: its policy.
    Raises ConfigError where the layout has no place for a parameter, FinetoothError for a file of the run
    that is missing or that no run writes so.
    """
    settings = {name: value for name, value in asdict(config).items() if name != "origins"}
    summary = read_object(run / "summary.json", Summary, needs=("num_steps",))
    require_file(run / "metrics.jsonl")
    facts = facts_of(run, json.loads(json.dumps(settings)), step=summary.get("final_step"))
    parameters = dict(model.named_parameters())
    parameters |= {name: tensor for name, tensor in model.named_buffers() if name in model.state_dict()}
    origin = origin_of(model.config)
    with new_folder(out) as folder:
        if origin is None:
            _write_plain(folder, run, plain_state(model, parameters), facts)
        else:
            _write_in_layout(folder, run, origin, parameters, facts)
    return sorted(path for path in out.rglob("*") if path.is_file())


def facts_of(run: Path, settings: Settings | None = None, *, step: int | None = None) -> WrittenBy:
    """What metrics.jsonl of a run says of it, beside its settings.

    step: the last one that counts; default: all do
    """
    done, dev_loss, best = 0, None, None
    for line in MetricsLog(run / "metrics.jsonl").each_line():
        if step is not None and line["step"] > step:
            break
        done = line["step"]
        if line.get("dev_loss") is not None:
            dev_loss = line["dev_loss"]
            best = dev_loss if best is None else min(best, dev_loss)
    return WrittenBy(done, dev_loss, best, settings or {})


def _write_in_layout(
    folder: Path, run: Path, origin: LegacyOrigin, parameters: Mapping[str, torch.Tensor], facts: WrittenBy
) -> None:
    name = origin.layout.file_name.format(step=facts.step)
    save_torch_file(folder / name, legacy_content(origin, parameters, facts))
    if origin.layout is CONFIGURABLE_GPT:
        log = _run_log(run, name, facts)
        _write_json(folder / f"{log['run_name']}.json", log)


def _write_plain(folder: Path, run: Path, state: Mapping[str, torch.Tensor], facts: WrittenBy) -> None:
    step_folder = folder / f"SFT_step_{facts.step}"
    step_folder.mkdir()
    save_torch_file(step_folder / FILE_NAME, state)
    metrics = {} if facts.dev_loss is None else {"dev_loss": facts.dev_loss}
    metadata = {"step": facts.step, "metrics": metrics, "timestamp": _time_of(run / "summary.json")}
    _write_json(step_folder / "metadata.json", metadata)
    losses = [line["loss"] for line in MetricsLog(run / "metrics.jsonl").each_line() if "loss" in line]
    _write_json(folder / "training_history.json", {"sft": {"train_loss": losses}})


def _run_log(run: Path, checkpoint: str, facts: WrittenBy) -> dict[str, Any]:
    """run_*.json of ConfigurableGPT; what finetooth does not record (mfu, times of evaluations) is null."""
    lines = MetricsLog(run / "metrics.jsonl").lines()
    environment = read_object(run / "environment.json", Environment, needs=("versions",))
    start = _time_of(run / "environment.json")
    return {
        "run_name": f"run_{datetime.fromisoformat(start):%Y%m%d_%H%M%S}",
        "start_time": start,
        "config": dict(facts.settings),
        "startup_info": environment,
        "training_iterations": [
            {
                "iter": line["step"],
                "loss": line["loss"],
                "time_ms": line["seconds"] * 1000 if "seconds" in line else None,
                "mfu": None,
            }
            for line in lines
            if "loss" in line
        ],
        "eval_steps": [
            {
                "iter": line["step"],
                "train_loss": line["train_loss"],
                "val_loss": line.get("dev_loss"),
                "timestamp": None,
            }
            for line in lines
            if "train_loss" in line
        ],
        "checkpoints": [
            {"iter": facts.step, "val_loss": facts.dev_loss, "path": checkpoint, "timestamp": None}
        ],
        "metadata": {},
        "end_time": _time_of(run / "summary.json"),
        "summary": read_object(run / "summary.json", Summary),
    }


def _time_of(file: Path) -> str:
    """When a file of the run was written; a run's own records hold durations only."""
    return datetime.fromtimestamp(file.stat().st_mtime, UTC).isoformat(timespec="seconds")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
