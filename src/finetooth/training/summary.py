"""summary.json: how a run ended, and what its policy can do."""

from typing import Any

from finetooth.training.metrics import is_evaluation
from finetooth.training.trainer import SFTTrainer, TrainResult

# The summary names so many changes, skipped steps and spikes; metrics.jsonl has all.
MOST_NOTES = 50
_FIGURES = (
    *("train_loss", "train_perplexity", "dev_loss", "dev_perplexity"),
    *("exact_match", "stop_rate", "loop_rate"),
)


def summary_of(trainer: SFTTrainer, result: TrainResult, *, final_step: int | None) -> dict[str, Any]:
    """What summary.json holds of a run.

    final_step: after which the policy in `final/` is as it is; the figures of evaluations are then its own.
                None for a run that was stopped.
    """
    notes: dict[str, list[dict[str, Any]]] = {"changes": [], "skipped": [], "spike": []}
    figures: dict[str, Any] = {}
    loss = first = None
    for line in result.metrics.each_line():
        loss = line.get("loss", loss)
        if is_evaluation(line):
            first = line["train_loss"] if first is None else first
            if final_step is None or line["step"] <= final_step:
                figures |= {name: line[name] for name in _FIGURES if name in line}
        for name, noted in notes.items():
            if name in line and len(noted) < MOST_NOTES:
                noted.append({"step": line["step"], name: line[name]})
    num_tokens, num_targets = trainer.schedule.totals(result.last_step)
    return {
        "state": "stopped" if final_step is None else "finished",
        "num_steps": result.last_step,
        **({} if trainer.ended_early is None else {"ended_early": trainer.ended_early}),
        **({} if final_step is None else {"final_step": final_step}),
        "num_documents": trainer.schedule.num_documents,
        "num_tokens": num_tokens,
        "num_targets": num_targets,
        **({} if loss is None else {"loss": loss}),
        **figures,
        "first_train_loss": first,
        "best_step": trainer.state.best_step,
        "best_by": trainer.config.evaluation.best_by,
        "peak_memory_mb": round(trainer.devices.peak_memory_mb(), 1),
        **{name: noted for name, noted in notes.items() if noted},
    }
