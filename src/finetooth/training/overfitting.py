"""A sanity run: every step sees the same few documents, whose loss must collapse."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finetooth.config.schema import SFTConfig

STEPS = 100
# Below this share of its first value, the loss of a few documents counts as collapsed.
COLLAPSED = 0.1


def overfitting(config: SFTConfig, num_documents: int) -> SFTConfig:
    """The config for a sanity run on so many documents: at the full learning rate, and to its last step."""
    training = replace(
        config.training,
        max_steps=config.training.max_steps or STEPS,
        global_batch_size=num_documents,
        global_batch_tokens=None,
        warmup_steps=0,
        lr_scheduler_type="constant",
    )
    evaluation = replace(
        config.evaluation,
        every=0,
        exact_match=None,
        train_documents=num_documents,
        best_by="dev_loss",
        patience=None,
    )
    checkpoints = replace(config.checkpoints, final="last")
    return replace(config, training=training, evaluation=evaluation, checkpoints=checkpoints)


def verdict_on(summary: Mapping[str, Any]) -> str:
    """What a sanity run has shown. summary: as summary.json holds it."""
    before, after = summary["first_train_loss"], summary["train_loss"]
    verdict = f"the loss of these documents fell from {before:.4f} to {after:.4f}"
    if after > before * COLLAPSED:
        verdict += ", which is no collapse: raise learning_rate or max_steps, or look at the targets"
    return verdict
