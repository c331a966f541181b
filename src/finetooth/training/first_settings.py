"""Settings to begin with, each with its reason, from the sizes of model and data and the machine's memory.

They are starting points that seldom fail, not the best ones. Where they come from:

learning rate  Full fine-tuning of 8 billion parameters uses about 1e-5 (Tülu 3: 5e-6, Llama 2 Chat: 2e-5); it
               grows with the root of how much smaller a model is. Adapters learn best at about ten times that
               rate, and in small batches (Schulman et al., LoRA Without Regret, 2025).
epochs         Three for little data (as of Alpaca), one for much, where a second pass adds little.
batch          As large as leaves a hundred updates: fewer cannot follow a course of the learning rate.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from finetooth.base.machine import Machine, gigabytes
from finetooth.config.schema import AdapterConfig, EvaluationConfig, TrainingConfig
from finetooth.model.shape import ModelShape
from finetooth.training.footprint import ComputedIn, Footprint, activation_bytes, footprint

Preset = Literal["full", "lora", "qlora"]

_FEWEST_UPDATES = 100
_LARGEST_BATCH = {"full": 128, "lora": 32, "qlora": 32}
_ROW_TOKENS = {"cpu": 4096, "cuda": 16384}
# What a device's memory is asked to hold at most: the rest is for fragments, kernels and other programs.
_USABLE = 0.85
_SMALLEST_LENGTH = 64
GIVEN = "as you said"
"""The reason of a value that was given."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The value of a setting, by its dotted key, and why it has it."""

    key: str
    value: Any
    reason: str


@dataclass(frozen=True, slots=True)
class Situation:
    """What the settings are chosen for.

    lengths:     tokens of each document that was looked at
    num_documents: how many there are in all
    is_text:     whether they are texts, which are divided where they are too long
    settled:     settings that have a value already, by dotted key
    """

    shape: ModelShape
    machine: Machine
    preset: Preset
    lengths: np.ndarray
    num_documents: int
    is_text: bool = False
    settled: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def device_type(self) -> str:
        """cuda where there is a GPU, else cpu."""
        return "cuda" if self.machine.gpus else "cpu"

    @property
    def precision(self) -> ComputedIn:
        """What training computes in there, as far as it can be told without torch."""
        return "bf16" if self.machine.gpus else "fp32"

    @property
    def free(self) -> int:
        """Bytes that training may use."""
        free = min(gpu.free for gpu in self.machine.gpus) if self.machine.gpus else self.machine.free
        return int(_USABLE * free)

    def needs(self, preset: Preset, pass_tokens: int) -> Footprint:
        """What training so holds in memory."""
        kind = None if preset == "full" else preset
        return footprint(
            self.shape,
            TrainingConfig(),
            AdapterConfig(type=kind),
            precision=self.precision,
            device_type=self.device_type,
            pass_tokens=pass_tokens,
        )


def choose_preset(
    shape: ModelShape, machine: Machine, lengths: np.ndarray, possible: tuple[Preset, ...]
) -> Preset:
    """The first of the possible presets that memory holds with the longest document; else the last."""
    for preset in possible:
        situation = Situation(shape, machine, preset, lengths, len(lengths))
        longest = min(int(lengths.max()), shape.positions or int(lengths.max()))
        if situation.needs(preset, longest).total <= situation.free:
            return preset
    return possible[-1]


def choose_settings(situation: Situation) -> list[Choice]:
    """The settings that depend on sizes, those of `data` first; what is settled keeps its value."""
    chooser = _Chooser(situation)
    chooser.dev()
    chooser.length()
    chooser.duration()
    chooser.batch()
    chooser.learning_rate()
    chooser.rows()
    chooser.adapter()
    chooser.rhythm()
    return [Choice(key, value, reason) for key, (value, reason) in chooser.chosen.items()]


def describe_memory(situation: Situation, pass_tokens: int) -> str:
    """What the preset trains and needs, in a sentence."""
    trained = {
        "full": "All parameters are trained",
        "lora": "Matrices beside the frozen model are trained",
        "qlora": "Matrices beside the model, held in 4 bits, are trained",
    }[situation.preset]
    needed = gigabytes(situation.needs(situation.preset, pass_tokens).total)
    available = gigabytes(situation.free / _USABLE)
    return f"{trained}: about {needed} of {available} that are free"


class _Chooser:
    """Chooses one setting after the other; what is settled stays as it is."""

    def __init__(self, situation: Situation):
        self.situation = situation
        self.chosen: dict[str, tuple[Any, str]] = {}
        self.num_updates = 0

    def decide(self, key: str, proposed: Any, reason: str | Callable[[Any], str]) -> Any:
        """Notes the value that counts and why; returns it. reason: of any value, or of the proposed one."""
        value = self.situation.settled.get(key, proposed)
        if callable(reason):
            reason = reason(value)
        elif key in self.situation.settled:
            reason = GIVEN
        self.chosen[key] = (value, reason)
        return value

    def dev(self) -> None:
        total = self.situation.num_documents
        share = min(0.2, float(f"{min(max(20, total // 20), 1000) / total:.1g}"))
        if total < 20:
            self.decide("data.dev", None, "too few documents to keep some out")
        else:
            kept_out = f"about {round(share * total):,} documents are kept out, to judge by"
            self.decide("data.dev", share, kept_out)

    def length(self) -> None:
        lengths = self.situation.lengths
        longest = int(lengths.max())
        limits = {
            "the longest": _rounded_up(longest),
            "the model": self.situation.shape.positions or _rounded_up(longest),
            "memory": max(_SMALLEST_LENGTH, self._tokens_that_fit() // 64 * 64),
            "row_tokens": self.situation.settled.get("training.row_tokens", _rounded_up(longest)),
        }
        limit = min(limits, key=lambda name: limits[name])

        def reason(value: int) -> str:
            num_longer = int((lengths > value).sum())
            if not num_longer:
                return f"tokens; the longest document has {longest:,}"
            holds = GIVEN if value != limits[limit] else f"what {limit} holds"
            if self.situation.is_text:
                return f"{holds}; longer texts are divided"
            return f"{holds}; {num_longer:,} of {len(lengths):,} are longer, left out"

        self.decide("data.max_length", limits[limit], reason)

    def _tokens_that_fit(self) -> int:
        fixed = self.situation.needs(self.situation.preset, 1).total
        per_token = activation_bytes(self.situation.shape, precision=self.situation.precision)
        return max(0, self.situation.free - fixed) // per_token

    def _num_trained(self) -> int:
        """Documents of an epoch."""
        share, lengths = self.value_of("data.dev"), self.situation.lengths
        is_short = self.situation.is_text | (lengths <= self.value_of("data.max_length"))
        train_share = 1 - (share if isinstance(share, float) else 0.0)
        return max(1, round(self.situation.num_documents * train_share * float(is_short.mean())))

    def duration(self) -> None:
        num_documents = self._num_trained()
        epochs = 3 if num_documents < 10_000 else 2 if num_documents < 100_000 else 1
        many = {3: "few", 2: "some", 1: "many"}[epochs]
        passes = f"passes over about {num_documents:,} documents, which are {many}"
        self.decide("training.num_train_epochs", epochs, passes)

    def batch(self) -> None:
        settled, num_documents = self.situation.settled, self._num_trained()
        epochs = self.value_of("training.num_train_epochs")
        most = min(_LARGEST_BATCH[self.situation.preset], epochs * num_documents / _FEWEST_UPDATES)
        proposed = min(num_documents, 2 ** int(math.log2(max(4, most))))
        if (budget := settled.get("training.global_batch_tokens")) is not None:
            proposed = max(1, int(budget / self.situation.lengths.mean()))
        per_step = settled.get("training.global_batch_size", proposed)
        updates = math.ceil(epochs * math.ceil(num_documents / per_step))
        self.num_updates = settled.get("training.max_steps") or updates
        if budget is None:
            reason = f"documents per update, so {self.num_updates:,} updates in all"
            self.decide("training.global_batch_size", proposed, lambda _: reason)

    def learning_rate(self) -> None:
        shape, preset = self.situation.shape, self.situation.preset
        if shape.is_fresh:
            rate = 6e-4 * math.sqrt(125e6 / shape.num_parameters)
            reason = "for fresh parameters of this size"
        else:
            rate = 1e-5 * math.sqrt(8e9 / shape.num_parameters)
            reason = "for a model of this size; larger ones want less"
        if preset != "full":
            rate, reason = 10 * rate, "ten times that of full training at this size"
        rate = self.decide("training.learning_rate", float(f"{min(rate, 1e-3):.1g}"), reason)
        self.decide("training.min_learning_rate", float(f"{rate / 10:.2g}"), "a tenth, reached at the end")
        share = 0.1 if self.num_updates < 300 else 0.05 if self.num_updates < 1000 else 0.03
        rising = f"a share: it rises over the first {max(1, round(share * self.num_updates)):,} updates"
        self.decide("training.warmup_steps", share, rising)

    def rows(self) -> None:
        per_step = self.situation.num_documents / max(1, self.num_updates)
        if "training.global_batch_size" in self.chosen:
            per_step = self.value_of("training.global_batch_size")
        step_tokens = _rounded_up(math.ceil(per_step * float(self.situation.lengths.mean())))
        limits = (_ROW_TOKENS[self.situation.device_type], step_tokens, self._tokens_that_fit() // 64 * 64)
        value = max(self.value_of("data.max_length"), min(limits))
        self.decide("training.row_tokens", value, "tokens at once; changes speed and memory alone")

    def adapter(self) -> None:
        preset = self.situation.preset
        if preset == "full":
            return
        base = "base in 4 bits" if preset == "qlora" else "base"
        self.decide("adapter.type", preset, f"matrices are trained beside the frozen {base}")
        rank = self.decide("adapter.r", 16 if self.situation.num_documents < 20_000 else 32, "their rank")
        self.decide("adapter.alpha", 2 * rank, "twice the rank, as usual")

    def rhythm(self) -> None:
        tenth = _round_number(self.num_updates / 10)
        every = self.decide("evaluation.every", tenth, "updates; about ten times in all")
        share = self.value_of("data.dev")
        num_dev = round(share * self.situation.num_documents) if isinstance(share, float) else 0
        if 0 < num_dev < EvaluationConfig.train_documents:
            self.decide("evaluation.train_documents", num_dev, "as many as of dev, so that it is quick")
        self.decide("checkpoints.every", every, "saved with each evaluation")

    def value_of(self, key: str) -> Any:
        """The value that was decided."""
        return self.chosen[key][0]


def _rounded_up(tokens: int) -> int:
    """To whole 64s, which suit the hardware."""
    return max(_SMALLEST_LENGTH, -(-tokens // 64) * 64)


def _round_number(value: float) -> int:
    """The nearest of 1, 2, 5, 10, 20, 50, …

    >>> [_round_number(value) for value in (0.3, 17.7, 270)]
    [1, 20, 200]
    """
    power = 10 ** int(math.log10(max(1, value)))
    return min(
        (step * power for step in (1, 2, 5, 10)), key=lambda round: abs(math.log(round / max(1, value)))
    )
