"""Which evaluation is the best so far, and whether the run has waited long enough for a better one.

Step 0, the base model, is no candidate: there is no checkpoint of it.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finetooth.base.errors import ConfigError, problem
from finetooth.config.figures import SHARES, is_better, needs_dev, who_asks_for_best
from finetooth.config.schema import SFTConfig
from finetooth.data.records import DocumentSource
from finetooth.evaluation.dev_loss import sample_documents
from finetooth.training.checkpoint import TrainingState


def require_measured(config: SFTConfig, dev: DocumentSource | None) -> None:
    """Raises ConfigError where the best evaluation is asked for by a figure that these records cannot give.

    dev: the records of the run, which may be none although the settings ask for some.
    """
    settings = config.evaluation
    figure = settings.best_by
    place = who_asks_for_best(best_by=figure, patience=settings.patience, final=config.checkpoints.final)
    if place is None or not needs_dev(figure):
        return
    remedy = "write evaluation.best_by: train_loss, or leave it out"
    if dev is None:
        fact = f"there are no dev records, so no {figure} is measured"
        raise ConfigError(problem(place, fact, remedy))
    if figure in SHARES and not _has_prompts(dev, config):
        fact = f"no dev record that is asked has a prompt, so no {figure} is measured"
        raise ConfigError(problem(place, fact, "write evaluation.best_by: dev_loss"))


def with_evaluation(state: TrainingState, line: Mapping[str, Any], *, by: str) -> TrainingState:
    """The state behind an evaluation.

    line: as metrics.jsonl holds it; where the figure is not in it, no evaluation is better than another.
    """
    state = replace(state, evaluated=line["step"])
    if line["step"] == 0 or by not in line:
        return state
    if is_better(line[by], state.best_value, by=by):
        return replace(state, best_step=line["step"], best_value=line[by], num_since_best=0)
    return replace(state, num_since_best=state.num_since_best + 1)


def without_best(state: TrainingState) -> TrainingState:
    """The state of a run that looks for its best evaluation anew."""
    return replace(state, best_step=None, best_value=None, num_since_best=0)


def why_ended_early(state: TrainingState, config: SFTConfig, *, num_steps: int) -> str | None:
    """What tells that the run is over before its last step; None where it is not.

    num_steps: of the whole run
    """
    patience, done = config.evaluation.patience, state.next_step - 1
    if patience is None or state.num_since_best < patience or done >= num_steps:
        return None
    evaluations = f"{patience} evaluations" if patience > 1 else "the evaluation"
    return (
        f"step {done} of {num_steps}: no better {config.evaluation.best_by} in {evaluations} "
        f"since step {state.best_step}"
    )


def _has_prompts(dev: DocumentSource, config: SFTConfig) -> bool:
    limit = config.evaluation.exact_match_records
    numbers = sample_documents(dev, limit, seed=config.training.seed)
    return any(dev.document(number).prompt_length > 0 for number in numbers.tolist())
