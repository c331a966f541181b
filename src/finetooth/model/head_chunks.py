"""How many targets' logits the loss holds at once; without torch, so that memory can be planned from it."""

# Logits held at once: on a CPU what its last cache holds, elsewhere enough for fast matrix products.
_CHUNK_LOGITS = {"cpu": 1 << 23}
_CHUNK_LOGITS_ELSEWHERE = 1 << 28
_MOST_ROWS = 8192


def chunk_rows(vocabulary: int, device_type: str) -> int:
    """Targets whose logits are computed together.

    >>> chunk_rows(32_768, "cpu"), chunk_rows(32_768, "cuda")
    (256, 8192)
    """
    return max(1, min(_MOST_ROWS, _CHUNK_LOGITS.get(device_type, _CHUNK_LOGITS_ELSEWHERE) // vocabulary))
