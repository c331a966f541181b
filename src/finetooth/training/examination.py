"""What is measured between steps: losses on fixed samples, and the policy's own answers to dev records."""

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetooth.base.devices import DeviceManager
from finetooth.base.distributed import Ranks
from finetooth.base.files import write_atomically
from finetooth.base.stopping import CutShort
from finetooth.config.schema import Extractor, SFTConfig
from finetooth.data.records import DocumentSource
from finetooth.data.templates.template import Template
from finetooth.evaluation.dev_loss import measure_losses, sample_documents
from finetooth.evaluation.exact_match import Answered, answer_documents, answer_figures
from finetooth.model.policy import PolicyModel
from finetooth.training.parallel import whole_parameters


@dataclass(frozen=True, slots=True)
class Examination:
    """How a policy is examined; every rank takes part.

    samples: the folder of the answers, a file per examined step.
    """

    policy: PolicyModel
    train: DocumentSource
    dev: DocumentSource | None
    template: Template | None
    config: SFTConfig
    devices: DeviceManager
    ranks: Ranks
    samples: Path

    def examine(
        self, step: int, *, is_leaving: Callable[[], bool], is_asked: Callable[[], bool]
    ) -> dict[str, float]:
        """The figures of a line of metrics.jsonl.

        is_leaving: whether all ranks leave before the end; every rank asks equally often.
        is_asked:   whether this rank was asked to stop; a rank may ask alone.
        Raises CutShort where the ranks leave.
        """

        def check() -> None:
            if is_leaving():
                raise CutShort

        figures = measure_losses(
            self.policy,
            train=self.train,
            dev=self.dev,
            config=self.config,
            devices=self.devices,
            ranks=self.ranks,
            check=check,
        )
        extractor = self.config.evaluation.exact_match
        if extractor is None or self.template is None or self.dev is None:
            return figures
        mine = self._answer(self.dev, self.template, extractor, is_asked)
        check()
        texts = self.ranks.texts(json.dumps([answer.as_line() for answer in mine]))
        answered = [Answered(**line) for text in texts for line in json.loads(text)]
        if self.ranks.is_first:
            lines = "".join(json.dumps(answer.as_line()) + "\n" for answer in answered)
            write_atomically(self.samples / f"step-{step:06d}.jsonl", lines.encode())
        return figures | answer_figures(answered)

    def _answer(
        self, dev: DocumentSource, template: Template, extractor: Extractor, is_asked: Callable[[], bool]
    ) -> list[Answered]:
        """This rank's answers; none of them where it was asked to stop."""

        def check(*_: object) -> None:
            if is_asked():
                raise CutShort

        settings = self.config.evaluation
        numbers = sample_documents(dev, settings.exact_match_records, seed=self.config.training.seed)
        with whole_parameters(self.policy), contextlib.ExitStack() as stack:
            stack.callback(self.policy.model.register_forward_pre_hook(check).remove)  # at each token
            stack.enter_context(contextlib.suppress(CutShort))
            return answer_documents(
                self.policy,
                dev,
                numbers=numbers[self.ranks.rank :: self.ranks.world_size].tolist(),
                template=template,
                extractor=extractor,
                max_new_tokens=settings.max_new_tokens,
                devices=self.devices,
            )
        return []


def in_words(line: dict[str, Any]) -> list[str]:
    """A line of losses and, where answers were compared, one of their shares; each within 80 columns."""
    losses = [
        f"{name} {line[name]:.4g}" for name in ("train_loss", "dev_loss", "dev_perplexity") if name in line
    ]
    shares = [f"{name} {line[name]:.1%}" for name in ("exact_match", "stop_rate") if name in line]
    opening = f"step {line['step']}"
    lines = ["  ".join([opening, *losses]), "  ".join([" " * len(opening), *shares])]
    return lines if shares else lines[:1]
