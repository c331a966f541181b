"""Collate: rows → Batch, everything a forward pass needs, computed on the host.

Shapes: B rows, T tokens in a row, N targets, S documents (stretches of padding included).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from finetooth.batching.order import draw_keys
from finetooth.batching.packing import Row
from finetooth.data.records import DocumentSource


@dataclass(frozen=True, slots=True)
class DocumentLayout:
    """Where documents begin and end in the flattened rows (B·T tokens); attention stays within them.

    lengths:    tokens of each stretch, in order; stretches of padding count as documents
    offsets_S1: int32 [S + 1], their cumulative sum on the device
    longest:    the greatest length
    """

    lengths: tuple[int, ...]
    offsets_S1: torch.Tensor
    longest: int


@dataclass(frozen=True, slots=True)
class Batch:
    """One forward pass.

    token_ids_BT:      int64, padded with 0 behind each row's documents
    positions_BT:      int64, counting from 0 in each document; 0 in padding
    layout:            where the documents lie
    target_sources_N:  int64, the places in the flattened rows from which a target is predicted
    targets_N:         int64, the token ids that are to be predicted there
    loss_weights_N:    float32, their loss weights
    documents:         the documents' numbers, in the order they are laid out
    dropout_keys_BT:   int64, what each token's dropout is drawn from; None where nothing is dropped

        documents 0 = [7 3 9 | 4 2] and 1 = [7 5 | 2] (prompt | targets) in one row:
        token_ids_BT     = [[7, 3, 9, 4, 2, 7, 5, 2]]
        positions_BT     = [[0, 1, 2, 3, 4, 0, 1, 2]]
        layout.lengths   = (5, 3)
        target_sources_N = [2, 3, 6]
        targets_N        = [4, 2, 2]
    """

    token_ids_BT: torch.Tensor
    positions_BT: torch.Tensor
    layout: DocumentLayout
    target_sources_N: torch.Tensor
    targets_N: torch.Tensor
    loss_weights_N: torch.Tensor
    documents: tuple[int, ...]
    dropout_keys_BT: torch.Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on the device."""

        def move(tensor: torch.Tensor) -> torch.Tensor:
            # from pageable memory, the host would wait for all that the device has to do before the copy
            source = tensor.pin_memory() if device.type == "cuda" else tensor
            return source.to(device, non_blocking=True)

        return replace(
            self,
            token_ids_BT=move(self.token_ids_BT),
            positions_BT=move(self.positions_BT),
            layout=replace(self.layout, offsets_S1=move(self.layout.offsets_S1)),
            target_sources_N=move(self.target_sources_N),
            targets_N=move(self.targets_N),
            loss_weights_N=move(self.loss_weights_N),
            dropout_keys_BT=None if self.dropout_keys_BT is None else move(self.dropout_keys_BT),
        )


def collate(
    rows: Sequence[Row],
    documents: DocumentSource,
    *,
    row_multiple: int = 1,
    dropout_draw: tuple[int, int] | None = None,
) -> Batch:
    """Lays the rows' documents end to end and finds every target.

    rows: document numbers per row, empty rows allowed; documents: where they are read from;
    row_multiple: the row length is rounded up to a multiple of it, so that few shapes occur;
    dropout_draw: seed and step, where the policy is to drop outputs.
    """
    contents = [[documents.document(number) for number in row] for row in rows]
    longest_row = max(sum(len(document.token_ids) for document in row) for row in contents)
    num_tokens = max(1, -(-longest_row // row_multiple)) * row_multiple
    token_ids = np.zeros((len(rows), num_tokens), dtype=np.int64)
    positions = np.zeros((len(rows), num_tokens), dtype=np.int64)
    loss_weights = np.zeros((len(rows), num_tokens), dtype=np.float32)
    keys = None if dropout_draw is None else np.zeros((len(rows), num_tokens), dtype=np.uint64)
    lengths: list[int] = []
    for row, row_documents in enumerate(contents):
        start = 0
        for number, document in zip(rows[row], row_documents, strict=True):
            end = start + len(document.token_ids)
            token_ids[row, start:end] = document.token_ids
            positions[row, start:end] = np.arange(end - start)
            loss_weights[row, start:end] = document.loss_weights
            assert loss_weights[row, start] == 0, "the first token of a document cannot be predicted"
            if keys is not None and dropout_draw is not None:
                keys[row, start:end] = draw_keys(*dropout_draw, number, count=end - start)
            lengths.append(end - start)
            start = end
        if start < num_tokens:
            lengths.append(num_tokens - start)
    targets = np.flatnonzero(loss_weights)
    return Batch(
        token_ids_BT=torch.from_numpy(token_ids),
        positions_BT=torch.from_numpy(positions),
        layout=_document_layout(lengths),
        target_sources_N=torch.from_numpy(targets - 1),
        targets_N=torch.from_numpy(token_ids.ravel()[targets]),
        loss_weights_N=torch.from_numpy(loss_weights.ravel()[targets]),
        documents=tuple(number for row in rows for number in row),
        dropout_keys_BT=None if keys is None else torch.from_numpy(keys.view(np.int64)),
    )


def _document_layout(lengths: list[int]) -> DocumentLayout:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return DocumentLayout(lengths=tuple(lengths), offsets_S1=torch.from_numpy(offsets), longest=max(lengths))
