"""One step computed in several ways, by the code that trains and by transformers, and how far they differ.

To compute a step updates nothing: the optimiser only notes the gradients that it is given.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from finetooth.base.devices import DeviceManager
from finetooth.batching.collate import collate
from finetooth.batching.packing import Layout, Row, forward_passes, lay_out
from finetooth.config.schema import ModelConfig, SFTConfig, TrainingConfig
from finetooth.data.records import IGNORED_LABEL, Document, DocumentSource
from finetooth.data.templates.template import Template
from finetooth.model.four_bits import loading_options
from finetooth.model.isolation import split_documents
from finetooth.model.load import load_model
from finetooth.model.policy import PolicyModel
from finetooth.model.quiet import quiet_transformers
from finetooth.training.final import save_final
from finetooth.training.legacy_files import has_twin
from finetooth.training.optimizer import create_optimizer
from finetooth.training.parallel import alone
from finetooth.training.step import train_step

# A gradient that is almost nothing beside the others (a key's bias, which softmax cancels) is all rounding;
# it is measured by this share of the usual norm.
_SHARE_OF_USUAL_NORM = 1e-3


@dataclass(frozen=True, slots=True)
class Computed:
    """A step's mean loss, and by its name the gradient of each parameter, unscaled and not clipped."""

    loss: float
    gradients: dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Difference:
    """The largest difference of two computations, and what it was found in: "loss" or a parameter."""

    measured: float
    place: str


def compute_step(
    policy: PolicyModel, documents: DocumentSource, *, layout: Layout, devices: DeviceManager
) -> Computed:
    """All the documents as one step of training, in this layout."""
    numbers = np.arange(len(documents.lengths))
    (rows,) = lay_out(numbers, documents.lengths, layout=layout)
    recorder = _Recorder(policy)
    result = train_step(
        alone(policy),
        [collate(group, documents) for group in forward_passes(rows, layout.rows_at_once)],
        total_loss_weight=float(documents.loss_weight_totals.sum()),
        learning_rate=0.0,
        optimizer=recorder,
        scaler=devices.gradient_scaler(),
        devices=devices,
        max_grad_norm=None,
    )
    return Computed(result.loss, recorder.gradients)


def compute_alone(policy: PolicyModel, documents: DocumentSource, *, devices: DeviceManager) -> Computed:
    """The same by transformers: `model(input_ids, labels=…)` of each document, weighted by its targets."""
    total = float(documents.loss_weight_totals.sum())
    scale = devices.gradient_scaler().get_scale()
    loss = 0.0
    policy.zero_grad()
    with policy.own_attention():
        for number in range(len(documents.lengths)):
            document = documents.document(number)
            for weight in np.unique(document.loss_weights[document.loss_weights > 0]).tolist():
                share = float((document.loss_weights == weight).sum()) * weight / total
                with devices.autocast():
                    mean = _own_loss(policy, document, weight)
                (mean * share * scale).backward()
                loss += float(mean.detach()) * share
    gradients = {name: p.grad / scale for name, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad()
    return Computed(loss, gradients)


def compare(ours: Computed, theirs: Computed) -> Difference:
    """|a − b|/|b| of the losses or ‖a − b‖/‖b‖ of a parameter's gradients, whichever is largest."""
    usual = float(torch.stack([tensor.norm() for tensor in theirs.gradients.values()]).square().mean().sqrt())
    found = [Difference(abs(ours.loss - theirs.loss) / abs(theirs.loss), "loss")]
    for name in sorted(ours.gradients.keys() | theirs.gradients.keys()):
        one, other = ours.gradients.get(name), theirs.gradients.get(name)
        if one is None or other is None:
            found.append(Difference(float("inf"), name))
            continue
        norm = max(float(other.norm()), _SHARE_OF_USUAL_NORM * usual)
        found.append(Difference(float((one - other).norm()) / norm, name))
    return _largest(found)


def measure_leak(
    policy: PolicyModel, documents: DocumentSource, *, layout: Layout, devices: DeviceManager
) -> Difference:
    """How far the hidden states of any document change when all tokens of another one are others.

    The documents go through one forward pass together. Place: the origin of the document that changed most.
    """
    numbers = np.arange(len(documents.lengths))
    (rows,) = lay_out(numbers, documents.lengths, layout=layout)
    order = [number for row in rows for number in row]
    before = _hidden_states(policy, documents, rows, devices)
    found: list[Difference] = []
    for changed in order:
        after = _hidden_states(policy, _Changed(documents, changed, policy.vocab_size), rows, devices)
        for number, ours, theirs in zip(order, after, before, strict=True):
            if number != changed and not torch.equal(ours, theirs):
                found.append(_difference(ours, theirs, documents.document(number)))
    return _largest(found)


def measure_reload(
    policy: PolicyModel,
    documents: DocumentSource,
    *,
    template: Template,
    config: SFTConfig,
    devices: DeviceManager,
    folder: Path,
) -> Difference:
    """Updates the policy once, writes it as `final/`, and compares its logits with plain transformers'.

    In float32. Infinite where final/ does not name every token that ends an answer.
    """
    _update_once(policy, documents, config.training, devices)
    save_final(folder, policy=policy, template=template)
    named = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"]
    if not set(template.stop_token_ids) <= set(named):
        return Difference(float("inf"), "generation_config.json")
    policy.eval()
    with quiet_transformers():
        reloaded = _load_plainly(folder, policy, devices)
    reloaded.to(policy.device).eval()
    found: list[Difference] = []
    for document in map(documents.document, range(len(documents.lengths))):
        ids = torch.from_numpy(document.token_ids.astype(np.int64))[None].to(policy.device)
        with torch.no_grad():
            ours, theirs = policy(input_ids=ids).logits, reloaded(input_ids=ids, use_cache=False).logits
        found.append(_difference(ours, theirs, document))
    return _largest(found)


def _update_once(
    policy: PolicyModel, documents: DocumentSource, training: TrainingConfig, devices: DeviceManager
) -> None:
    train_step(
        alone(policy),
        [collate([(number,)], documents) for number in range(len(documents.lengths))],
        total_loss_weight=float(documents.loss_weight_totals.sum()),
        learning_rate=training.learning_rate,
        optimizer=create_optimizer(policy, learning_rate=training.learning_rate),
        scaler=devices.gradient_scaler(),
        devices=devices,
        max_grad_norm=training.max_grad_norm,
    )


def _difference(ours: torch.Tensor, theirs: torch.Tensor, document: Document) -> Difference:
    """‖a − b‖/‖b‖, in float32."""
    measured = float((ours.float() - theirs.float()).norm() / theirs.float().norm())
    return Difference(measured, str(document.origin))


def _largest(found: Sequence[Difference]) -> Difference:
    """The largest of them; what is not a number is larger than all numbers."""
    return max(
        [Difference(0.0, ""), *found],
        key=lambda difference: math.inf if math.isnan(difference.measured) else difference.measured,
    )


def _load_plainly(folder: Path, policy: PolicyModel, devices: DeviceManager) -> Any:
    """What transformers makes of a folder, peft of an adapter on its base, finetooth of what has no twin."""
    load = AutoModelForCausalLM.from_pretrained
    if not has_twin(policy.model):
        return load_model(ModelConfig(path=str(folder)), place="final/")
    if policy.adapter is None:
        return load(folder, local_files_only=True)
    is_narrow = any(type(parameter).__name__ == "Params4bit" for parameter in policy.parameters())
    options = loading_options(devices) if is_narrow else {}
    base: Any = load(policy.adapter.base_name, dtype=policy.model.dtype, local_files_only=True, **options)
    if base.get_input_embeddings().num_embeddings < policy.vocab_size:
        base.resize_token_embeddings(policy.vocab_size, mean_resizing=False)
    from peft import PeftModel  # takes seconds to load

    return PeftModel.from_pretrained(base, folder)


class _Recorder(torch.optim.Optimizer):
    """Notes the gradients of a policy instead of updating it."""

    def __init__(self, policy: PolicyModel):
        trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
        super().__init__(list(trained.values()), {"lr": 0.0})
        self.gradients: dict[str, torch.Tensor] = {}
        self._trained = trained

    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.gradients = {name: p.grad.clone() for name, p in self._trained.items() if p.grad is not None}


class _Changed:
    """A document source in which every token of one document is another one."""

    def __init__(self, documents: DocumentSource, changed: int, vocab_size: int):
        self.lengths, self.num_targets = documents.lengths, documents.num_targets
        self.loss_weight_totals = documents.loss_weight_totals
        self.fingerprint = f"{documents.fingerprint}, {changed} changed"
        self._documents, self._changed, self._vocab_size = documents, changed, vocab_size

    def document(self, number: int, /) -> Document:
        document = self._documents.document(number)
        if number != self._changed:
            return document
        return replace(document, token_ids=(document.token_ids + 1) % self._vocab_size)


def _own_loss(policy: PolicyModel, document: Document, weight: float) -> torch.Tensor:
    """transformers' own mean loss over the targets of this weight."""
    ids = torch.from_numpy(document.token_ids.astype(np.int64))
    labels = torch.where(torch.from_numpy(document.loss_weights == weight), ids, IGNORED_LABEL)
    ids, labels = ids[None].to(policy.device), labels[None].to(policy.device)
    return policy.own_loss(ids, labels)


@torch.no_grad()
def _hidden_states(
    policy: PolicyModel, documents: DocumentSource, rows: Sequence[Row], devices: DeviceManager
) -> list[torch.Tensor]:
    with devices.autocast():
        hidden_BTD = policy.hidden_states(collate(rows, documents).to(devices.device))
    return list(split_documents(hidden_BTD, rows, documents.lengths.tolist()))
