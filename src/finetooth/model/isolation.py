"""Proves, when a model is loaded, how its documents may be laid out: sharing rows, or each in its own.

Shapes: B rows, T tokens in a row, D hidden.
"""

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from finetooth.base.devices import DeviceManager
from finetooth.base.errors import ConfigError, problem
from finetooth.batching.collate import collate
from finetooth.batching.packing import Row
from finetooth.data.records import Document, Origin
from finetooth.model.model_config import first_line
from finetooth.model.policy import PolicyModel

# Three documents, in one row or in rows of their own; with a row of nothing but padding, as ranks have them.
_PACKED: tuple[Row, ...] = ((0, 1, 2),)
_APART: tuple[Row, ...] = ((0,), (1,), (2,), ())
_LENGTHS = (7, 12, 4)
_LARGEST_LEAK = 1e-6
# How wide windows are for the proof, so that documents reach beyond them, and what models call it.
_WINDOW = 5
_WIDTHS = ("sliding_window", "attention_chunk_size")
# What models raise where their numbers do not fit together, or where they are built otherwise than most.
_FAILURES = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def settle_packing(
    policy: PolicyModel, *, devices: DeviceManager, place: str = "model", must_pack: bool = False
) -> None:
    """Notes in `policy.why_not_packed` why documents cannot share a row, where they cannot.

    Three short documents of random tokens are packed into one row. Their hidden states and their loss must
    equal those of transformers' own computation, document by document: to 1e-4 in fp32, to 5e-2 in bf16 and
    fp16 (‖a − b‖/‖b‖). And when one of them is changed, the others must stay as they are: to 1e-6, which
    finds what leaks through a short convolution. Meanwhile sliding windows are at most 5 tokens wide, so that
    documents reach beyond them. Where this does not hold, each is given a row of its own, padded at the end,
    and its hidden states and loss must be those of transformers.

    An auxiliary loss that a mixture of experts asks for must be transformers' own for a document alone.

    must_pack: whether a model whose documents cannot share a row is of no use.
    Raises ConfigError for a model whose documents cannot be computed exactly (or not packed, if they must).
    """
    kind = type(policy.model).__name__
    policy.why_not_packed = _why_not_packed(policy, devices)
    if policy.balance is not None:
        _prove_balance(policy, devices, place)
    if policy.why_not_packed is None:
        return
    try:
        fact = _difference(policy, _APART, devices)
    except _FAILURES as error:
        fact = f"{kind} cannot compute: {first_line(error)}"
        remedy = "check that the numbers in config.json fit together"
        raise ConfigError(problem(place, fact, remedy)) from error
    if fact is not None:
        remedy = "use an architecture with plain causal attention"
        raise ConfigError(problem(place, f"{kind}: {fact}", remedy))
    if must_pack:
        remedy = "write training.packing: auto, which gives each document a row of its own"
        raise ConfigError(problem(place, f"{kind}: {policy.why_not_packed}", remedy))


def split_documents(
    hidden_BTD: torch.Tensor, rows: Sequence[Row], lengths: Sequence[int]
) -> Iterator[torch.Tensor]:
    """The hidden states [T, D] of each document in the rows, in their order; lengths: by document."""
    for hidden_TD, row in zip(hidden_BTD, rows, strict=True):
        sizes = [int(lengths[number]) for number in row]
        yield from hidden_TD[: sum(sizes)].split(sizes) if sizes else ()


def _why_not_packed(policy: PolicyModel, devices: DeviceManager) -> str | None:
    if not policy.model._can_set_attn_implementation():
        return "its attention cannot be kept within packed documents"
    if any(name.endswith("sinks") for name, _ in policy.model.named_parameters()):
        return "its attention has sinks, which packed documents would share"
    try:
        return _difference(policy, _PACKED, devices) or _leak(policy, devices)
    except ConfigError:
        return "it does not pass the layout of packed documents on to its attention"
    except _FAILURES as error:
        return f"it cannot compute packed documents: {first_line(error)}"


def _prove_balance(policy: PolicyModel, devices: DeviceManager, place: str) -> None:
    documents = _RandomDocuments(policy.vocab_size)
    batch = collate(_APART[:1], documents, row_multiple=8).to(devices.device)
    assert policy.balance is not None
    with _evaluating(policy), devices.autocast(), policy.own_attention():
        input_ids = batch.token_ids_BT[:, : _LENGTHS[0]]
        theirs = getattr(policy.model(input_ids=input_ids, use_cache=False), "aux_loss", None)
        ours = None if theirs is None else policy.balance_sum(batch)
    own = None if theirs is None else theirs.float() * policy.balance.coefficient * batch.loss_weights_N.sum()
    allowed = 1e-4 if devices.precision == "fp32" else 5e-2
    if ours is None or own is None or not abs(float(ours - own)) <= allowed * abs(float(own)):
        fact = f"{type(policy.model).__name__}: its auxiliary loss is not that of other mixtures of experts"
        raise ConfigError(problem(place, fact, "write output_router_logits: false in config.json"))


def _difference(policy: PolicyModel, rows: Sequence[Row], devices: DeviceManager) -> str | None:
    """What differs between these rows and transformers' own computation of each document, if anything."""
    documents = _RandomDocuments(policy.vocab_size)
    batch = collate(rows, documents, row_multiple=8).to(devices.device)
    with _evaluating(policy), _narrow_windows(policy), devices.autocast():
        hidden_BTD = policy.hidden_states(batch)
        loss = policy(batch)
        with policy.own_attention():
            alone = [_alone(policy, document) for document in documents.documents]
    laid_out = "packed documents" if rows == _PACKED else "documents with padding behind them"
    together_TD = torch.cat(list(split_documents(hidden_BTD, rows, _LENGTHS)))
    alone_TD = torch.cat([hidden for hidden, _ in alone])
    alone_loss = torch.stack([loss for _, loss in alone]).sum()
    allowed = 1e-4 if devices.precision == "fp32" else 5e-2
    for what, ours, own in (
        (f"the hidden states of {laid_out} differ from those of each alone", together_TD, alone_TD),
        ("the loss differs from the model's own", loss, alone_loss),
    ):
        difference = float((ours.float() - own.float()).norm() / own.float().norm())
        if not difference <= allowed:
            return f"{what} (by {difference:.1e}, allowed {allowed:.0e})"
    return None


def _leak(policy: PolicyModel, devices: DeviceManager) -> str | None:
    """How far packed documents change when another one of their row does, if they do.

    In float32 without autocast: a mixture of experts groups its tokens anew, which changes the last bits.
    """

    def hidden_states(*, changed: int | None) -> list[torch.Tensor]:
        documents = _RandomDocuments(policy.vocab_size, changed=changed)
        batch = collate(_PACKED, documents, row_multiple=8).to(devices.device)
        return list(split_documents(policy.hidden_states(batch), _PACKED, _LENGTHS))

    with _evaluating(policy):
        before = hidden_states(changed=None)
        largest = 0.0
        for changed in range(len(_LENGTHS)):
            for number, (ours, own) in enumerate(zip(hidden_states(changed=changed), before, strict=True)):
                if number != changed:
                    largest = max(largest, float((ours - own).norm() / own.norm()))
    if largest <= _LARGEST_LEAK:
        return None
    return f"packed documents change with each other (by {largest:.1e}, allowed {_LARGEST_LEAK:.0e})"


@contextlib.contextmanager
def _evaluating(policy: PolicyModel) -> Iterator[None]:
    was_training = policy.training
    policy.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        policy.train(was_training)


@contextlib.contextmanager
def _narrow_windows(policy: PolicyModel) -> Iterator[None]:
    """Within it, no window of attention is wider than `_WINDOW` tokens."""
    modules = list(policy.model.modules())
    holders = {
        id(holder): holder for module in modules for holder in (module, getattr(module, "config", None))
    }
    widths = [
        (holder, name, width)
        for holder in holders.values()
        for name in _WIDTHS
        if isinstance(width := getattr(holder, name, None), int) and width > _WINDOW
    ]
    try:
        for holder, name, _ in widths:
            setattr(holder, name, _WINDOW)
        yield
    finally:
        for holder, name, width in widths:
            setattr(holder, name, width)


class _RandomDocuments:
    """Three short documents of random tokens, all of them targets; every token of one may be changed."""

    def __init__(self, vocab_size: int, *, changed: int | None = None):
        draws = np.random.default_rng(0)
        self.lengths = np.array(_LENGTHS)
        self.num_targets = self.lengths - 1
        self.loss_weight_totals = self.num_targets.astype(np.float64)
        self.fingerprint = f"random {vocab_size}"
        self.documents = [
            Document(
                token_ids=(draws.integers(0, vocab_size, length, dtype=np.int32) + (number == changed))
                % vocab_size,
                loss_weights=(np.arange(length) > 0).astype(np.float32),
                prompt_length=1,
                origin=Origin("random", number),
            )
            for number, length in enumerate(self.lengths)
        ]

    def document(self, number: int, /) -> Document:
        return self.documents[number]


def _alone(policy: PolicyModel, document: Document) -> tuple[torch.Tensor, torch.Tensor]:
    """The document's hidden states [T, D] and loss sum, computed by transformers alone."""
    input_ids = torch.from_numpy(document.token_ids.astype(np.int64))[None].to(policy.device)
    loss = policy.own_loss(input_ids, labels=input_ids)
    hidden = policy.model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state[0]
    return hidden, loss.float() * document.num_targets
