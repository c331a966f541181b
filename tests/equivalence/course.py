"""One course of training, in any layout and by any number of ranks, and what two courses have in common."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Literal

import pytest
import torch
from tests.documents import Documents, largest_difference, random_documents, small_policy

from finetooth.base.devices import DeviceManager
from finetooth.base.distributed import ALONE, Ranks
from finetooth.batching.collate import Batch, collate
from finetooth.batching.packing import Layout, forward_passes
from finetooth.batching.schedule import Schedule
from finetooth.config.schema import ParallelConfig
from finetooth.model.policy import PolicyModel
from finetooth.training.optimizer import create_optimizer
from finetooth.training.parallel import SharedPolicy, distribute, whole
from finetooth.training.step import _accumulate, train_step


@dataclass(frozen=True)
class Case:
    """How a course is followed.

    targetless: documents without any target. frozen: parameters whose name contains it are not trained.
    has_extra_module: the model has one that the loss does not depend on.
    mean_of_means: the usual mistake, on purpose.
    """

    layout: Layout
    num_steps: int = 1
    batch: int = 8
    num_documents: int = 24
    wide: bool = False
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    precision: Literal["fp32", "fp16", "bf16-pure"] = "fp32"
    dropout: float = 0.0
    tied: bool = True
    frozen: str | None = None
    has_extra_module: bool = False
    targetless: tuple[int, ...] = ()
    mean_of_means: bool = False


@dataclass(frozen=True)
class Course:
    """What a rank saw: losses and its own documents by step, the gradient of the first step, and the end."""

    losses: list[float]
    gradients: dict[str, torch.Tensor]
    documents: list[list[int]]
    parameters: dict[str, torch.Tensor]
    loss_scale: float


class MeanOfMeans(SharedPolicy):
    """Divides each batch's loss by its own total, and averages over batches: what this project is not."""

    def loss_sum(self, batch: Batch, *, gradient_scale: float) -> torch.Tensor:
        factor = 10.0 / max(1.0, float(batch.loss_weights_N.sum()))
        return super().loss_sum(batch, gradient_scale=gradient_scale * factor) * factor


def follow_all(ranks: Ranks, cases: Sequence[Case]) -> list[Course]:
    """Every case, one after the other, in the same processes."""
    return [follow(case, ranks) for case in cases]


def follow(case: Case, ranks: Ranks = ALONE) -> Course:
    """Trains a fresh small policy."""
    documents, devices = documents_of(case), DeviceManager("cpu", case.precision)
    policy = policy_of(case)
    schedule = schedule_of(case, documents)
    shared = distribute(policy, ranks, parallel=case.parallel, devices=devices)
    if case.mean_of_means:
        shared = MeanOfMeans(shared.policy, shared.trained, shared.ranks)
    offload = case.parallel.offload_optimizer
    optimizer = create_optimizer(policy, learning_rate=1e-3, offload=offload)
    # In fp16, the first gradients overflow until the scale has come down.
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, enabled=case.precision == "fp16")
    losses: list[float] = []
    seen: list[list[int]] = []
    gradients: dict[str, torch.Tensor] = {}
    for step in schedule.steps():
        rows = schedule.rows(step, layout=case.layout, rank=ranks.rank, world_size=ranks.world_size)
        draw = (3, step.number) if case.dropout else None
        batches = [
            collate(group, documents, dropout_draw=draw)
            for group in forward_passes(rows, case.layout.rows_at_once)
        ]
        seen.append(sorted(number for batch in batches for number in batch.documents))
        if step.number == 1 and step.total_loss_weight and case.precision == "fp32":
            _accumulate(shared, batches, step.total_loss_weight, optimizer, scaler, devices)
            gradients = {
                name: whole(parameter.grad).clone()
                for name, parameter in policy.named_parameters()
                if parameter.grad is not None
            }
        result = train_step(
            shared,
            batches,
            total_loss_weight=step.total_loss_weight,
            learning_rate=1e-3,
            optimizer=optimizer,
            scaler=scaler,
            devices=devices,
            max_grad_norm=1.0,
        )
        losses.append(result.loss)
    parameters = {name: whole(p).detach().clone() for name, p in policy.named_parameters()}
    return Course(losses, gradients, seen, parameters, scaler.get_scale())


def policy_of(case: Case) -> PolicyModel:
    policy = small_policy(tie_word_embeddings=case.tied)
    if case.has_extra_module:
        policy.model.extra = torch.nn.Linear(3, 5)
    if case.frozen is not None:
        for name, parameter in policy.named_parameters():
            parameter.requires_grad_(case.frozen not in name)
    policy.set_dropout(case.dropout)
    dtype = torch.bfloat16 if case.precision == "bf16-pure" else torch.float32
    return policy.to(torch.float64 if case.wide else dtype).train()


def documents_of(case: Case) -> Documents:
    """Documents with 1 to 23 targets, and some with none."""
    documents = random_documents(case.num_documents).documents
    emptied = [
        replace(document, loss_weights=document.loss_weights * 0) if number in case.targetless else document
        for number, document in enumerate(documents)
    ]
    return Documents(emptied)


def schedule_of(case: Case, documents: Documents) -> Schedule:
    return Schedule(
        documents.lengths,
        documents.loss_weight_totals,
        documents.num_targets,
        seed=3,
        max_steps=case.num_steps,
        global_batch_size=case.batch,
    )


def assert_same(courses: Sequence[Course], expected: Course, *, wide: bool = False) -> None:
    """Holds the courses of all ranks against that of one process: documents, losses and every gradient."""
    steps = zip(*(course.documents for course in courses), strict=True)
    assert [sorted(chain.from_iterable(step)) for step in steps] == expected.documents
    for course in courses:
        assert course.losses == pytest.approx(expected.losses, rel=1e-12 if wide else 1e-6)
        assert course.gradients.keys() == expected.gradients.keys()
        if expected.gradients:  # a step without targets has none
            assert largest_difference(course.gradients, expected.gradients) < (1e-12 if wide else 1e-5)
