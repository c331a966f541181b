"""How many floating-point operations training needs, counted from sizes alone."""

from collections.abc import Sequence

import numpy as np

from finetooth.model.shape import ModelShape


def flops_per_token(
    shape: ModelShape, lengths: Sequence[int] | np.ndarray, share_of_targets: float, *, lora: bool
) -> float:
    """Floating-point operations that training needs for a token of these documents, none counted twice.

    k · N_linear + k · V · h · (share of targets) + 6 · L · n_heads · d_head · Σℓ² / Σℓ, with k = 6 where all
    parameters are trained and 4 where low-rank matrices are. N_linear: parameters of the layers' matrices,
    three in a feed-forward block; ℓ: lengths of documents, within which attention is causal.

    >>> shape = ModelShape(num_parameters=0, is_fresh=True, positions=None, vocabulary=10, hidden=2, layers=1,
    ...                    query_width=2, key_width=2, feed_forward=3)
    >>> flops_per_token(shape, [4, 4], 0.5, lora=False)  # 6 · (16 + 18) + 6 · 10 + 6 · 2 · 4
    312.0
    """
    sizes = np.asarray(lengths, dtype=np.float64)
    features = 2 * shape.query_width + 2 * shape.key_width + 3 * shape.feed_forward
    linear = shape.layers * shape.hidden * features
    head = shape.vocabulary * shape.hidden * share_of_targets
    attention = 6 * shape.layers * shape.query_width * float((sizes**2).sum() / sizes.sum())
    return (4 if lora else 6) * (linear + head) + attention
