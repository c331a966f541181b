"""What a report says first: eight questions about a run, each answered from what its directory holds.

Where the directory does not tell, the answer is that it is not known, and what would tell.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from finetooth.data.ledger import Counts
from finetooth.reporting.course import is_number
from finetooth.reporting.numerals import in_words
from finetooth.reporting.run_reading import Run

State = Literal["good", "look", "bad", "unknown"]

# A dev loss so far above its lowest one means that the policy has learnt the records by heart since.
_OVERFIT_SHARE = 0.02
# Below this, answers that go on until they are cut off are more than exceptions.
_FEWEST_STOPS = 0.95


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer to one question: good, worth a look, bad or not known; in a few words, and in a sentence."""

    name: str
    state: State
    fact: str
    told: str = ""


def findings_of(run: Run) -> list[Finding]:
    """One for each question, always in the same order."""
    return [judge(run) for judge in _JUDGES]


def _masks(run: Run) -> Finding:
    name = "masks"
    if not run.masks:
        return Finding(name, "unknown", "not known", "there is no ledger of records that are kept")
    given = run.masks.get("as given", 0)
    others = sum(run.masks.values()) - given
    if not given:
        told = f"of {others:,} records that are kept, the targets are proved on text and ids"
        return Finding(name, "good", "all proved", told)
    told = f"{given:,} records bring targets of their own, which were taken as given; {others:,} are proved"
    return Finding(name, "look", f"{given:,} as given", told)


def _stop_token(run: Run) -> Finding:
    name = "stop token"
    if run.data is None:
        return Finding(name, "unknown", "not known", "there is no data.json")
    endings, untrained = run.data.endings, _noted(run, "untrained_tokens")
    rate = _last_figure(run, "stop_rate")
    if endings.num_looked_at == 0:
        return Finding(name, "unknown", "none asked for", "no document answers a prompt")
    share = f"{endings.num_ended:,} of {endings.num_looked_at:,} documents"
    told = f"{share} that were looked at end their last answer with {' or '.join(endings.stop_tokens)}"
    if rate is not None:
        told += f"; {rate:.1%} of the answers at the last evaluation stop by themselves"
    if endings.num_ended < endings.num_looked_at:
        return Finding(name, "bad", f"missing in {endings.num_looked_at - endings.num_ended:,}", told)
    if rate is not None and rate < _FEWEST_STOPS:
        return Finding(name, "look", f"{rate:.0%} of answers stop", told)
    if untrained and rate is None:
        told += (
            f"; the base model seems never to have trained {' '.join(untrained)}, and no answer was asked for"
        )
        return Finding(name, "look", "new to the base", told)
    return Finding(name, "good", "always a target" if rate is None else f"{rate:.0%} of answers stop", told)


def _truncation(run: Run) -> Finding:
    name = "truncation"
    if run.data is None or not run.counts:
        return Finding(name, "unknown", "not known", "there is no data.json, or no ledger")
    too_long = _num_dropped(run.counts, lambda reason: reason.startswith("longer than data.max_length"))
    divided, left_out = run.data.summary.get("num_divided", 0), run.data.summary.get("num_left_out", 0)
    parts = (
        [f"longer than data.max_length, so not trained: {in_words(too_long, 'record')}"] if too_long else []
    )
    parts += [f"divided into windows: {in_words(divided, 'text')}"] if divided else []
    parts += (
        [f"left out at the start of long conversations: {in_words(left_out, 'message')}"] if left_out else []
    )
    if not parts:
        return Finding(name, "good", "none", "no document is cut, and none was too long")
    fact = f"{too_long:,} too long" if too_long else f"{divided or left_out:,} shortened"
    return Finding(name, "look", fact, "no document is cut; " + "; ".join(parts))


def _duplicates(run: Run) -> Finding:
    name = "duplicates"
    if run.data is None or not run.counts:
        return Finding(name, "unknown", "not known", "there is no data.json, or no ledger")
    equal = _num_dropped(run.counts, lambda reason: reason == "duplicate of an earlier record")
    near = _num_dropped(run.counts, lambda reason: reason == "almost equal to an earlier record")
    kept, data = run.data.summary.get("num_near_duplicates", 0), run.config.data
    if data.on_duplicate == "keep":
        return Finding(name, "unknown", "not looked for", "data.on_duplicate is keep")
    told = "no record was dropped as equal to another one"
    if equal + near:
        told = f"dropped: {in_words(equal, 'record')} equal and {near:,} almost equal to an earlier one"
    if kept:
        told += f"; {kept:,} almost equal ones are kept"
        return Finding(name, "look", f"{kept:,} near ones kept", told)
    if data.on_near_duplicate == "keep":
        told += "; almost equal ones were not looked for (data.on_near_duplicate: report)"
    return Finding(name, "good", f"{equal + near:,} dropped" if equal + near else "none", told)


def _leakage(run: Run) -> Finding:
    name = "leakage"
    if "dev" not in run.counts:
        return Finding(name, "unknown", "no dev records", "nothing was held out (data.dev)")
    if run.config.data.on_leak == "keep":
        return Finding(name, "unknown", "not looked for", "data.on_leak is keep")
    num_leaks = _num_dropped(run.counts, lambda reason: reason.startswith("leak: "))
    told = "no prompt of a dev record stands in a training record"
    if not num_leaks:
        return Finding(name, "good", "none", told)
    return Finding(name, "good", f"{num_leaks:,} dropped", f"{num_leaks:,} records were dropped; now {told}")


def _overfit(run: Run) -> Finding:
    name = "overfit"
    lines = [line for line in run.course.evaluations if is_number(line.get("dev_loss"))]
    known = [(int(line["step"]), float(line["dev_loss"])) for line in lines if line["step"] > 0]
    if not known:
        told = "there is no dev loss: set data.dev and evaluation.every"
        return Finding(name, "unknown", "not known", told)
    best_step, best = min(known, key=lambda entry: entry[1])
    last_step, last = known[-1]
    if len(known) == 1:
        told = f"the dev loss was taken once, {last:.4g} at step {last_step:,}; see evaluation.every"
        return Finding(name, "unknown", "one measurement", told)
    told = f"dev loss {last:.4g} at step {last_step:,}, lowest {best:.4g} at step {best_step:,}"
    if run.summary.get("final_step", last_step) == best_step != last_step:
        return Finding(name, "good", "not in final/", f"{told}, whose policy final/ holds")
    if last > best + _OVERFIT_SHARE * abs(best):
        rise = f"{last / best - 1:+.1%}" if best else f"{last - best:+.3g}"
        return Finding(name, "look", f"{rise} since step {best_step:,}", told)
    return Finding(name, "good", "not seen", told)


def _spikes(run: Run) -> Finding:
    name = "spikes"
    num_skipped = sum("skipped" in note for note in run.course.notes)
    spikes = [note for note in run.course.notes if "spike" in note]
    if num_skipped:
        fact = f"{in_words(num_skipped, 'step')} skipped"
        told = f"{fact}, as loss or gradient was not finite; {in_words(len(spikes), 'spike')}"
        return Finding(name, "bad", fact, told)
    if not run.config.logging.spikes:
        return Finding(name, "unknown", "not looked for", "logging.spikes is false")
    if not len(run.course.steps):
        return Finding(name, "unknown", "not known", "no update was logged")
    if spikes:
        steps = ", ".join(f"{note['step']:,}" for note in spikes[:5]) + (" …" if len(spikes) > 5 else "")
        return Finding(name, "look", f"{len(spikes):,}", f"the loss lay far above the usual at step {steps}")
    return Finding(name, "good", "none", "no loss lay far above those before it; every step was finite")


def _reload(run: Run) -> Finding:
    name = "reload parity"
    if not run.verified:
        told = "what plain transformers makes of the policy was not measured: finetooth export --verify does"
        return Finding(name, "unknown", "not measured", told)
    verdicts = [verdict for verdict in run.verified.get("verdicts", []) if isinstance(verdict, dict)]
    parts = [f"{verdict.get('name')}: {verdict.get('what')}" for verdict in verdicts]
    failed = [str(verdict.get("name")) for verdict in verdicts if verdict.get("state") == "failed"]
    form = f"{run.verified.get('to')}, {run.verified.get('dtype')}"
    if failed or not run.verified.get("passed"):
        return Finding(name, "bad", f"fails ({form})", f"failed: {', '.join(failed)}. {'; '.join(parts)}")
    return Finding(name, "good", f"holds ({form})", "; ".join(parts))


_JUDGES: tuple[Callable[[Run], Finding], ...] = (
    *(_masks, _stop_token, _truncation, _duplicates, _leakage, _overfit, _spikes, _reload),
)


def _num_dropped(counts: Mapping[str, Counts], is_meant: Callable[[str], bool]) -> int:
    return sum(
        number for count in counts.values() for reason, number in count.reasons.items() if is_meant(reason)
    )


def _noted(run: Run, name: str) -> list[str]:
    """What environment.json notes of the template."""
    noted: Any = run.environment.get("template", {}).get(name, [])
    return [str(each) for each in noted]


def _last_figure(run: Run, name: str) -> float | None:
    figures = [line[name] for line in run.evaluations_of_policy if is_number(line.get(name))]
    return float(figures[-1]) if figures and math.isfinite(figures[-1]) else None
