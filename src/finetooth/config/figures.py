"""Figures of an evaluation by which one policy is better than another: which way, and what measures them."""

from typing import Literal

Figure = Literal[
    "dev_loss", "dev_perplexity", "train_loss", "train_perplexity", "exact_match", "stop_rate", "loop_rate"
]
SHARES = ("exact_match", "stop_rate", "loop_rate")
_LARGER_IS_BETTER = ("exact_match", "stop_rate")


def is_better(value: float, than: float | None, *, by: str) -> bool:
    """Whether a figure's value is better than an earlier one; an equal one is not, nor is any without one.

    >>> is_better(0.5, 0.4, by="exact_match"), is_better(0.5, 0.4, by="dev_loss")
    (True, False)
    >>> is_better(0.5, 0.5, by="dev_loss"), is_better(0.5, None, by="dev_loss")
    (False, True)
    """
    if than is None:
        return True
    return value > than if by in _LARGER_IS_BETTER else value < than


def needs_dev(figure: Figure) -> bool:
    """Whether it is measured on dev records."""
    return not figure.startswith("train_")


def who_asks_for_best(*, best_by: Figure, patience: int | None, final: str) -> str | None:
    """The setting for which a run has to know its best evaluation; None where it may do without one."""
    asking = {
        "evaluation.patience": patience is not None,
        "checkpoints.final": final == "best",
        "evaluation.best_by": best_by != "dev_loss",
    }
    return next((key for key, asks in asking.items() if asks), None)


def holds_best(*, final: str, patience: int | None) -> bool:
    """Whether `final/` is to hold the policy of the best evaluation rather than that of the last step."""
    return final == "best" or (final == "auto" and patience is not None)
