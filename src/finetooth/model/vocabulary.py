"""The rows of embedding and head that stand for tokens: new ones for added tokens, and untrained ones.

V rows, D hidden.
"""

import math

import torch
from torch import nn
from transformers import PreTrainedModel

from finetooth.base.errors import ConfigError, problem
from finetooth.data.templates.template import Template
from finetooth.model.policy import PolicyModel
from finetooth.model.quiet import quiet_transformers

# A row is far from the others where the logarithm of its norm is so many robust standard deviations from the
# median of all, and its norm less than half or more than twice the median norm.
_FAR = 6.0
_FACTOR = 2.0
_SAME = 0.01
_ROWS_AT_ONCE = 8192


@torch.no_grad()
def add_rows(policy: PolicyModel, template: Template) -> None:
    """Gives the tokens that a template added rows of embedding and head: the mean of the tokenizer's others.

    Rows that lie free in the model are used; where there are too few, embedding, head and the head's bias
    grow, and `vocab_size` of the model's config with them. The mean is taken over the rows of the tokens that
    were there before, not over padding rows, and without those that look untrained; it is computed in
    float64. Call it once, on a base model: on a policy that was trained, it would undo what its rows learnt.
    """
    if not template.added_tokens:
        return
    new_ids = [template.tokenizer.control_tokens[name] for name in template.added_tokens]
    num_known = min(new_ids)
    if problems := find_misfit(policy, num_known - 1):
        raise ConfigError(problems)
    if max(new_ids) >= policy.vocab_size:
        with quiet_transformers():
            policy.model.resize_token_embeddings(max(new_ids) + 1, mean_resizing=False)
    matrices, bias = _row_tensors(policy.model)
    for rows_VD in matrices:
        usual = ~_is_unusual(rows_VD[:num_known])
        rows_VD[new_ids] = _mean_of(rows_VD[:num_known], usual).to(rows_VD.dtype)
    if bias is not None:
        bias[new_ids] = bias[:num_known].double().mean().to(bias.dtype)


@torch.no_grad()
def find_untrained(policy: PolicyModel, template: Template) -> tuple[str, ...]:
    """Names of the tokens of a template whose rows look as if the base model never learnt them.

    That is, the row of embedding or head is zero, equals another token's, or has a norm far from that of the
    others. Tokens that the template added are not among them. Call it on a base model.
    """
    names = {token_id: name for name, token_id in template.tokenizer.control_tokens.items()}
    wanted = dict.fromkeys((*template.written_token_ids, *template.stop_token_ids))
    known = [i for i in wanted if names[i] not in template.added_tokens and i < policy.vocab_size]
    num_rows = min(policy.vocab_size, template.tokenizer.largest_id + 1 - len(template.added_tokens))
    untrained: set[int] = set()
    for rows_VD in _row_tensors(policy.model)[0]:
        unusual_V = _is_unusual(rows_VD[:num_rows])
        untrained.update(i for i in known if unusual_V[i] or _has_equal(rows_VD[:num_rows], i))
    return tuple(names[i] for i in known if i in untrained)


def find_misfit(policy: PolicyModel, largest_id: int) -> list[str]:
    """A problem where the policy has no embedding for an id that the tokenizer gives, else none."""
    if largest_id < policy.vocab_size:
        return []
    fact = f"ids up to {largest_id}, but the embedding has {policy.vocab_size} rows"
    return [problem("model.tokenizer", fact, "use the tokenizer that belongs to the model")]


def _row_tensors(model: PreTrainedModel) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    """The embedding [V, D] and, where it is another tensor, the head [V, D]; the head's bias [V] if any."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(embedding, nn.Embedding), "load_policy refuses models without an embedding"
    assert isinstance(head, nn.Linear), "load_policy refuses heads that are not one linear layer"
    is_tied = head.weight is embedding.weight
    return [embedding.weight] if is_tied else [embedding.weight, head.weight], head.bias


def _mean_of(rows_VD: torch.Tensor, chosen_V: torch.Tensor) -> torch.Tensor:
    """The mean of the chosen rows in float64, [D]; a piece at a time, since a copy of all is large."""
    pieces = zip(rows_VD.split(_ROWS_AT_ONCE), chosen_V.split(_ROWS_AT_ONCE), strict=True)
    total_D = torch.stack([rows[chosen].double().sum(dim=0) for rows, chosen in pieces]).sum(dim=0)
    return total_D / chosen_V.sum()


def _is_unusual(rows_VD: torch.Tensor) -> torch.Tensor:
    """Whether each row is zero or has a norm far from the others': bool [V]."""
    norms_V = torch.linalg.vector_norm(rows_VD, dim=1)
    logarithms_V = norms_V.clamp(min=torch.finfo(norms_V.dtype).tiny).log()
    distances_V = (logarithms_V - logarithms_V.median()).abs()
    spread = 1.4826 * float(distances_V.median())  # of a normal distribution, the standard deviation
    return distances_V > max(_FAR * spread, math.log(_FACTOR))


def _has_equal(rows_VD: torch.Tensor, row: int) -> bool:
    """Whether another row is the same vector."""
    norms_V = torch.linalg.vector_norm(rows_VD, dim=1)
    close = torch.nonzero((norms_V - norms_V[row]).abs() <= _SAME * norms_V[row]).flatten()
    differences = torch.linalg.vector_norm(rows_VD[close] - rows_VD[row], dim=1)
    return int((differences <= _SAME * norms_V[row]).sum()) > 1
