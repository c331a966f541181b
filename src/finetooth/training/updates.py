"""Updates: reads the rows of a step, trains them, and lays them out anew where memory does not hold them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from rich.console import Console

from finetooth.base.devices import DeviceManager
from finetooth.base.errors import (
    DeviceMemoryError,
    NonFiniteError,
    ToldElsewhere,
    is_out_of_memory,
    out_of_memory,
)
from finetooth.base.terminal import print_line
from finetooth.batching.collate import Batch, collate
from finetooth.batching.largest import LargestPass, largest_pass
from finetooth.batching.packing import Layout, Row, forward_passes
from finetooth.batching.row_lengths import padded_length, row_lengths
from finetooth.batching.schedule import Schedule, Step
from finetooth.config.schema import TrainingConfig
from finetooth.data.records import DocumentSource
from finetooth.model.recompute import LADDER, LADDER_OF_COMPILED, Recompute
from finetooth.training.guards import blame_documents
from finetooth.training.memory import find_layout, fits, release, smaller
from finetooth.training.optimizer import lr_at
from finetooth.training.parallel import SharedPolicy
from finetooth.training.step import StepResult, train_step


@dataclass(slots=True)
class Updates:
    """How the parameters are updated, step by step; every rank takes part.

    layout:   of the rows from the next step on; with `auto_fit` it becomes smaller where it has to.
    console:  where that is told.
    is_ample: whether memory certainly holds a forward and backward pass of so many tokens; all ranks ask.
    recompute: what of each layer the backward pass computes again; settled before the first step.
    """

    training: TrainingConfig
    schedule: Schedule
    documents: DocumentSource
    shared: SharedPolicy
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    devices: DeviceManager
    layout: Layout
    warmup_steps: int
    auto_fit: bool
    console: Console
    is_ample: Callable[[int], bool]
    recompute: Recompute = LADDER[0]
    _fitted: tuple[Layout, list[int]] | None = None
    _ahead: tuple[int, Layout, list[Batch]] | None = None

    def settle(self, *, first: int) -> None:
        """Settles what is recomputed and how long rows are, from the step `first` on.

        Rehearses unless memory is ample, and raises what `rehearse` does.
        """
        if self.has_room_to_spare(first=first):
            asked = self.training.recompute
            self._recompute(LADDER[0] if asked == "auto" else asked)
        else:
            self.rehearse(first=first)

    def has_room_to_spare(self, *, first: int) -> bool:
        """Whether rehearsing the steps from `first` on would show nothing, as sizes alone tell.

        What it takes on a CPU is time. Layers that are compiled are rehearsed all the same, as it shows
        whether they can be.
        """
        if self.devices.device.type != "cpu" or self.training.compile:
            return False
        world_size = self.shared.ranks.world_size
        return self.is_ample(
            largest_pass(self.schedule, self.layout, first=first, world_size=world_size).num_tokens
        )

    def rehearse(self, *, first: int) -> None:
        """Tries the largest forward pass from the step `first` on, so that lack of memory is told at once.

        What is recomputed is the least with which it fits, if the settings leave that open.
        Raises DeviceMemoryError where it does not fit; with `auto_fit` a layout that fits is taken.
        """
        failed = self._recompute_what_has_to_be(first)
        if failed is None:
            return
        layout, error = find_layout(
            self.layout,
            lambda layout: self._largest_that_fails(layout, first),
            failed=failed,
            longest_document=self._longest_document,
            devices=self.devices,
        )
        if layout is None or not self.auto_fit:
            raise error if self.shared.ranks.is_first else ToldElsewhere(exit_code=error.exit_code)
        self._take_layout(layout)

    def train(self, step: Step) -> StepResult:
        """Updates the parameters once; in ever smaller rows while memory does not hold it, with `auto_fit`.

        Raises NonFiniteError, which names documents, and DeviceMemoryError; neither touches the parameters.
        """
        while True:
            try:
                with self.shared.ranks.doing(f"step {step.number}, update"):
                    return self._train_in_layout(step)
            except (MemoryError, RuntimeError, DeviceMemoryError) as error:
                if not isinstance(error, DeviceMemoryError) and not is_out_of_memory(error):
                    raise
                layout = smaller(self.layout, longest_document=self._longest_document)
                if not self.auto_fit or layout is None or self.shared.is_sharded:
                    place = f"step {step.number}"
                    raise (
                        error if isinstance(error, DeviceMemoryError) else out_of_memory(place, error)
                    ) from None
            self.optimizer.zero_grad()
            release(self.devices)
            self._take_layout(layout)

    def learning_rate(self, step: int) -> float:
        """What the step's update is scaled by."""
        training = self.training
        return lr_at(
            step,
            num_steps=self.schedule.num_steps,
            learning_rate=training.learning_rate,
            min_learning_rate=training.min_learning_rate,
            warmup_steps=self.warmup_steps,
            lr_scheduler_type=training.lr_scheduler_type,
        )

    def _train_in_layout(self, step: Step) -> StepResult:
        batches = self._laid_out(step)
        is_careful = self.auto_fit and self.shared.ranks.world_size > 1 and not self.shared.is_sharded
        try:
            return train_step(
                self.shared,
                batches,
                total_loss_weight=step.total_loss_weight,
                learning_rate=self.learning_rate(step.number),
                optimizer=self.optimizer,
                scaler=self.scaler,
                devices=self.devices,
                max_grad_norm=self.training.max_grad_norm,
                place=f"step {step.number}",
                nothing=collate([()], self.documents) if is_careful else None,
                meanwhile=partial(self._look_ahead, step.number + 1),
            )
        except NonFiniteError as error:
            culprits = blame_documents(
                self.shared.policy, self.documents, numbers=step.documents.tolist(), devices=self.devices
            )
            raise NonFiniteError([*error.problems, culprits]) from None

    def _laid_out(self, step: Step) -> list[Batch]:
        """This rank's forward passes of the step, which may have been laid out during the step before."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[:2] == (step.number, self.layout):
            return ahead[2]
        rows = self.schedule.rows(
            step, layout=self.layout, rank=self.shared.ranks.rank, world_size=self.shared.ranks.world_size
        )
        with self.shared.ranks.doing(f"step {step.number}, reading documents"):
            passes = forward_passes(rows, self.layout.rows_at_once)
            return [self._batch(group, step.number) for group in passes]

    def _look_ahead(self, number: int) -> None:
        """Lays out a step before its turn, while the device computes the one before."""
        if number <= self.schedule.num_steps:
            self._ahead = number, self.layout, self._laid_out(self.schedule.step(number))

    def _batch(self, rows: list[Row], step: int) -> Batch:
        draw = (self.training.seed, step) if self.shared.policy.drops else None
        return collate(
            rows,
            self.documents,
            row_multiple=padded_length(rows, self.schedule.lengths, self._row_lengths()),
            dropout_draw=draw,
        )

    def _largest_that_fails(self, layout: Layout, first: int) -> LargestPass | None:
        """The largest forward pass in this layout where it does not fit, else None."""
        largest = largest_pass(self.schedule, layout, first=first, world_size=self.shared.ranks.world_size)
        with self.shared.ranks.doing("rehearsing the largest forward pass"):
            batch = self._batch(largest.rows, largest.step)
            is_fitting = fits(
                self.shared,
                batch,
                optimizer=self.optimizer,
                devices=self.devices,
                has_others=largest.has_others,
            )
        return None if is_fitting else largest

    def _recompute_what_has_to_be(self, first: int) -> LargestPass | None:
        """Settles what is recomputed: the least with which the largest pass fits. Returns it if none does."""
        asked, failed = self.training.recompute, None
        ladder = LADDER_OF_COMPILED if self.training.compile else LADDER
        for recompute in ladder if asked == "auto" else (asked,):
            self._recompute(recompute)
            failed = self._largest_that_fails(self.layout, first)
            if failed is None:
                if recompute not in (asked, LADDER[0]):
                    fact = "memory does not hold all that the backward pass needs"
                    print_line(self.console, f"{fact}; goes on with training.recompute: {recompute}")
                break
        return failed

    def _recompute(self, recompute: Recompute) -> None:
        self.recompute = recompute
        self.shared.policy.set_recompute(recompute, compiled=self.training.compile)

    def _row_lengths(self) -> list[int]:
        """Fitted once for each layout."""
        if self._fitted is None or self._fitted[0] != self.layout:
            found = row_lengths(
                self.schedule,
                self.layout,
                device_type=self.devices.device.type,
                world_size=self.shared.ranks.world_size,
            )
            self._fitted = self.layout, found
        return self._fitted[1]

    def _take_layout(self, layout: Layout) -> None:
        self.layout = layout
        facts = f"row_tokens {layout.row_tokens:,}, rows_at_once {layout.rows_at_once}"
        print_line(self.console, f"memory does not hold the rows that were asked for; goes on with {facts}")

    @property
    def _longest_document(self) -> int:
        return int(self.documents.lengths.max())
