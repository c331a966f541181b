"""What `docs/scale.md` says of 10⁸ documents and 1,024 ranks."""

import tracemalloc

import numpy as np
import pytest

from finetooth.batching.packing import Layout
from finetooth.batching.schedule import Schedule


@pytest.mark.parametrize("number", [1, 12_345, 24_415, 24_416])
def test_a_step_of_a_hundred_million_documents_takes_two_megabytes(number: int):
    lengths = np.broadcast_to(np.int64(500), 100_000_000)
    schedule = Schedule(lengths, lengths, lengths, seed=42, num_epochs=2, global_batch_size=4096)
    tracemalloc.start()
    step = schedule.step(number)
    rows = schedule.rows(step, layout=Layout(packing=True, row_tokens=16_384), rank=1023, world_size=1024)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4e6
    assert len(step.documents) in (4095, 4096)
    assert len(set(step.documents.tolist())) == len(step.documents)
    assert sum(len(row) for row in rows) in (3, 4)
