"""Three ways to do a training step on the same documents, and documents to do it on."""

from collections.abc import Callable

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from finetooth import DeviceManager, PolicyModel, create_optimizer
from finetooth.base.devices import deterministic_seed
from finetooth.batching.collate import collate
from finetooth.batching.packing import Layout, forward_passes
from finetooth.batching.row_lengths import padded_length, row_lengths
from finetooth.batching.schedule import Schedule, Step
from finetooth.data.records import IGNORED_LABEL, Document, DocumentSource, Origin
from finetooth.training.parallel import alone
from finetooth.training.step import StepResult, train_step

PLAIN = "plain transformers"
PADDED_ROWS = 8
LEARNING_RATE, MAX_GRAD_NORM = 1e-4, 1.0
Arm = Callable[[Step], StepResult]


def build_arms(
    config: Qwen3Config,
    documents: DocumentSource,
    schedule: Schedule,
    devices: DeviceManager,
    *,
    row_tokens: int,
) -> dict[str, Arm]:
    """Three ways to do a step, each with a model of its own that starts from the same parameters."""
    packed = Layout(packing=True, row_tokens=max(row_tokens, int(documents.lengths.max())))
    padded = Layout(packing=False, row_tokens=packed.row_tokens, rows_at_once=PADDED_ROWS)
    return {
        "finetooth, packed": _own_arm(config, documents, schedule, packed, devices),
        "finetooth, padded": _own_arm(config, documents, schedule, padded, devices),
        PLAIN: _plain_arm(config, documents, devices),
    }


class RandomDocuments:
    """Documents of random tokens with ids below 8192; the second half of each is trained."""

    def __init__(self, lengths: np.ndarray):
        self.lengths, self.num_targets = lengths, lengths // 2
        self.loss_weight_totals, self.fingerprint = self.num_targets.astype(np.float64), "random"

    def document(self, number: int, /) -> Document:
        """The document with this number."""
        length = int(self.lengths[number])
        prompt_length = length - length // 2
        token_ids = np.random.default_rng(number).integers(1, 8192, length, np.int32)
        loss_weights = (np.arange(length) >= prompt_length).astype(np.float32)
        return Document(token_ids, loss_weights, prompt_length, Origin("random", number + 1))


def _own_arm(
    config: Qwen3Config, documents: DocumentSource, schedule: Schedule, layout: Layout, devices: DeviceManager
) -> Arm:
    policy = _fresh_policy(config, devices)
    optimizer, scaler = create_optimizer(policy, learning_rate=LEARNING_RATE), devices.gradient_scaler()
    among = row_lengths(schedule, layout, device_type=devices.device.type)

    def run(step: Step) -> StepResult:
        groups = forward_passes(schedule.rows(step, layout=layout), layout.rows_at_once)
        lengths = [padded_length(group, documents.lengths, among) for group in groups]
        return train_step(
            alone(policy),
            [
                collate(group, documents, row_multiple=length)
                for group, length in zip(groups, lengths, strict=True)
            ],
            total_loss_weight=step.total_loss_weight,
            learning_rate=LEARNING_RATE,
            optimizer=optimizer,
            scaler=scaler,
            devices=devices,
            max_grad_norm=MAX_GRAD_NORM,
        )

    return run


def _plain_arm(config: Qwen3Config, documents: DocumentSource, devices: DeviceManager) -> Arm:
    """Rows in the step's order, padded to the longest of eight; transformers' own forward pass and loss."""
    model = _fresh_policy(config, devices).model
    optimizer, scaler = create_optimizer(model, learning_rate=LEARNING_RATE), devices.gradient_scaler()

    def run(step: Step) -> StepResult:
        loss_sum = torch.zeros((), device=devices.device)
        for numbers in np.split(step.documents, range(PADDED_ROWS, len(step.documents), PADDED_ROWS)):
            batch = {name: tensor.to(devices.device) for name, tensor in _padded(numbers, documents).items()}
            with devices.autocast():
                loss = model(**batch, use_cache=False, num_items_in_batch=step.num_targets).loss
            scaler.scale(loss).backward()
            loss_sum += loss.detach()
        scaler.unscale_(optimizer)
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return StepResult(float(loss_sum), float(grad_norm))

    return run


def _fresh_policy(config: Qwen3Config, devices: DeviceManager) -> PolicyModel:
    with deterministic_seed(0):
        return PolicyModel(Qwen3ForCausalLM(config).to(devices.device)).train()  # type: ignore[arg-type]


def _padded(numbers: np.ndarray, documents: DocumentSource) -> dict[str, torch.Tensor]:
    """input_ids, attention_mask and labels, int64 [B, T], of documents one per row."""
    width = int(documents.lengths[numbers].max())
    rows = np.zeros((3, len(numbers), width), np.int64)
    rows[2] = IGNORED_LABEL
    for row, document in enumerate(map(documents.document, numbers.tolist())):
        length = len(document.token_ids)
        rows[0, row, :length], rows[1, row, :length] = document.token_ids, 1
        rows[2, row, :length] = np.where(document.loss_weights > 0, document.token_ids, IGNORED_LABEL)
    return dict(zip(("input_ids", "attention_mask", "labels"), torch.from_numpy(rows), strict=True))
