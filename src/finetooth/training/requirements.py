"""What must fit together before a run's first step: settings, documents, model and rows."""

from collections.abc import Sequence

from finetooth.base.errors import ConfigError, problem
from finetooth.batching.packing import Layout
from finetooth.batching.schedule import Schedule
from finetooth.config.schema import SFTConfig, TrainingConfig
from finetooth.data.records import DocumentSource
from finetooth.data.templates.template import Template
from finetooth.model.load import refuse_misfits
from finetooth.model.policy import PolicyModel
from finetooth.training.best import require_measured
from finetooth.training.optimizer import num_warmup_steps


def require_measurable(config: SFTConfig, dev: DocumentSource | None, template: Template | None) -> None:
    """Raises ConfigError where an evaluation could not give what the settings ask of it."""
    if config.evaluation.exact_match is not None and template is None:
        raise ConfigError(problem("evaluation.exact_match", "no template was given", "pass template="))
    require_measured(config, dev)


def require_fitting(
    policy: PolicyModel, sources: Sequence[DocumentSource], template: Template | None, *, layout: Layout
) -> None:
    """Raises ConfigError where a document, or the tokenizer, does not fit into the model or a row."""
    longest = max(int(source.lengths.max()) for source in sources)
    tokenizer = None if template is None else template.tokenizer
    refuse_misfits(policy, tokenizer, longest_document=longest)
    if layout.packing and longest > layout.row_tokens:
        fact = f"rows hold {layout.row_tokens} tokens, the longest document has {longest}"
        raise ConfigError(problem("training.row_tokens", fact, f"write {longest} or more"))


def checked_warmup(training: TrainingConfig, schedule: Schedule) -> int:
    """The number of steps of warm-up. Raises ConfigError where the run would end before they do."""
    num_steps = num_warmup_steps(training.warmup_steps, schedule.num_steps)
    if num_steps >= schedule.num_steps > 1:
        fact = f"{num_steps} steps of warm-up in a run of {schedule.num_steps} steps"
        raise ConfigError(problem("training.warmup_steps", fact, "write fewer, or a share such as 0.03"))
    return num_steps
