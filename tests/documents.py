"""Small document sources and models that several tests use."""

from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from finetooth.data.records import Document, Origin
from finetooth.model.policy import PolicyModel


class Documents:
    """Documents in memory, as a DocumentSource."""

    def __init__(self, documents: list[Document]):
        self.documents = documents
        self.lengths = np.array([len(document.token_ids) for document in documents])
        self.num_targets = np.array([document.num_targets for document in documents])
        self.loss_weight_totals = np.array([float(document.loss_weights.sum()) for document in documents])
        self.fingerprint = str([document.token_ids.tolist() for document in documents])

    def document(self, number: int, /) -> Document:
        return self.documents[number]


def random_documents(
    num_documents: int, *, vocab_size: int = 64, longest: int = 24, seed: int = 0
) -> Documents:
    """Documents of random tokens with very unequal numbers of targets, one of them fractional in weight."""
    draws = np.random.default_rng(seed)
    documents: list[Document] = []
    for number in range(num_documents):
        length = int(draws.integers(3, longest + 1))
        num_targets = int(draws.integers(1, length))
        loss_weights = np.zeros(length, dtype=np.float32)
        loss_weights[length - num_targets :] = 0.5 if number == 1 else 1.0
        token_ids = draws.integers(1, vocab_size, length).astype(np.int32)
        documents.append(
            Document(token_ids, loss_weights, length - num_targets, Origin("random.jsonl", number + 1))
        )
    return Documents(documents)


def small_config(**settings: object) -> Qwen3Config:
    """A Qwen3 model of a few thousand parameters, with grouped queries."""
    defaults: dict[str, object] = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    return Qwen3Config(**{**defaults, **settings})  # type: ignore[arg-type]


def small_model(*, seed: int = 0, **settings: object) -> PreTrainedModel:
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(small_config(**settings))


def small_policy(*, seed: int = 0, **settings: object) -> PolicyModel:
    return PolicyModel(small_model(seed=seed, **settings))


def save_small_model(folder: Path, *, seed: int = 0, **settings: object) -> Path:
    small_model(seed=seed, **settings).save_pretrained(folder)
    return folder


def gradients(policy: PolicyModel) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def largest_difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """The largest ‖a − b‖ / ‖b‖ over the tensors."""
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).norm() / theirs[name].norm()) for name in theirs)
