"""Batched greedy generation that ends at the stop tokens.

B rows that are answered together, T tokens of a row.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers import DynamicCache, GenerationConfig, StoppingCriteria, StoppingCriteriaList

from finetooth.base.devices import DeviceManager
from finetooth.evaluation.roomy_cache import roomy_cache
from finetooth.model.policy import PolicyModel

ROWS_AT_ONCE = 64
# Rows that have stopped are left behind when they are one of so many.
_SHARE_LEFT_BEHIND = 8
# An answer ends in a loop where one stretch is repeated at its end: so often, and over so many tokens.
LOOP_TIMES = 3
LOOP_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Generation:
    """Token ids the policy wrote after a prompt, without the stop token; whether it stopped by itself."""

    token_ids: tuple[int, ...]
    stopped: bool


def generate(
    policy: PolicyModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_token_ids: Sequence[int],
    devices: DeviceManager,
    on_progress: Callable[[int], object] | None = None,
) -> list[Generation]:
    """Continues every prompt greedily until a stop token or `max_new_tokens`; in the order given.

    prompts: token ids, none empty. Prompts of similar length are answered together, padded on the left.
    on_progress: called with the number of prompts answered since the last call.
    """
    assert all(len(prompt) for prompt in prompts), "a prompt needs at least one token"
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]), reverse=True)
    answers: dict[int, Generation] = {}
    was_training = policy.training
    policy.eval()
    try:
        for numbers in _groups(policy, prompts, order, max_new_tokens):
            rows = [prompts[number] for number in numbers]
            written = _generate_rows(policy, rows, max_new_tokens, stop_token_ids, devices)
            answers.update(zip(numbers, written, strict=True))
            if on_progress is not None:
                on_progress(len(numbers))
    finally:
        policy.train(was_training)
    return [answers[number] for number in range(len(prompts))]


def generate_one(
    policy: PolicyModel,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    stop_token_ids: Sequence[int],
    devices: DeviceManager,
    on_token: Callable[[int], object],
) -> Generation:
    """Continues one prompt as `generate` does, and tells of every token while it is written.

    on_token: called with each token id of the answer, the stop token apart; what it raises ends the answer
    """
    was_training = policy.training
    policy.eval()
    try:
        told = _Teller(on_token, frozenset(stop_token_ids))
        [answer] = _generate_rows(policy, [prompt], max_new_tokens, stop_token_ids, devices, told=told)
    finally:
        policy.train(was_training)
    return answer


class _Teller:
    """What transformers calls a streamer: it is given the prompt, then each token as soon as it is known."""

    def __init__(self, on_token: Callable[[int], object], stop_token_ids: frozenset[int]):
        self._on_token = on_token
        self._stop_token_ids = stop_token_ids
        self._is_prompt = True

    def put(self, token_ids: torch.Tensor) -> None:
        for token_id in [] if self._is_prompt else token_ids.tolist():
            if token_id not in self._stop_token_ids:
                self._on_token(token_id)
        self._is_prompt = False

    def end(self) -> None:
        """Nothing is held back here."""


def _groups(
    policy: PolicyModel, prompts: Sequence[Sequence[int]], order: list[int], max_new_tokens: int
) -> Iterator[list[int]]:
    """Up to 64 prompts at once; one that leaves too few positions for a whole answer is answered alone.

    So an answer never depends on which other prompts are asked.
    """
    positions = getattr(policy.model.config, "max_position_embeddings", None)
    group: list[int] = []
    for number in order:
        if positions is not None and len(prompts[number]) + max_new_tokens > positions:
            yield [number]
            continue
        group.append(number)
        if len(group) == ROWS_AT_ONCE:
            yield group
            group = []
    if group:
        yield group


def _generate_rows(
    policy: PolicyModel,
    rows: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop_token_ids: Sequence[int],
    devices: DeviceManager,
    told: "_Teller | None" = None,
) -> list[Generation]:
    """Answers rows together; those that have stopped are left behind as soon as they are many."""
    longest = max(map(len, rows))
    room = getattr(policy.model.config, "max_position_embeddings", longest + max_new_tokens) - longest
    if room <= 0:
        return [Generation((), stopped=False)] * len(rows)
    end = longest + min(max_new_tokens, room)
    ids_BT, mask_BT = _padded(rows, pad=stop_token_ids[0], device=devices.device)
    stops = torch.tensor(list(stop_token_ids), device=devices.device)
    cache = roomy_cache(policy.model)
    answers: dict[int, Generation] = {}
    going = list(range(len(rows)))
    while going:
        with devices.autocast():
            ids_BT = _one_pass(policy, ids_BT, mask_BT, cache, stops=stops, end=end, told=told)
        written = ids_BT[:, longest:]
        goes_on_B = ~torch.isin(written, stops).any(dim=1) & (ids_BT.shape[1] < end)
        for number, row, goes_on in zip(going, written.tolist(), goes_on_B.tolist(), strict=True):
            if not goes_on:
                answers[number] = until_stop(row, set(stop_token_ids))
        kept = goes_on_B.nonzero()[:, 0]
        going = [going[place] for place in kept.tolist()]
        if going:
            assert cache is not None, "without one, nothing ends a pass before all have stopped"
            cache.reorder_cache(kept)  # pyright: ignore[reportArgumentType]
            mask_BT = F.pad(mask_BT, (0, ids_BT.shape[1] - mask_BT.shape[1]), value=1)[kept]
            ids_BT = ids_BT[kept]
    return [answers[number] for number in range(len(rows))]


def _padded(
    rows: Sequence[Sequence[int]], *, pad: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids int64 [B, T], padded on the left, and a mask of the same shape that is 0 at the padding."""
    longest = max(map(len, rows))
    ids_BT = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows], device=device)
    mask_BT = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids_BT, mask_BT


def _one_pass(
    policy: PolicyModel,
    ids_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    cache: DynamicCache | None,
    *,
    stops: torch.Tensor,
    end: int,
    told: "_Teller | None",
) -> torch.Tensor:
    """The rows continued up to `end` tokens, or until enough of them have stopped to leave those behind.

    cache: keys and values of all tokens but the last, which grow; without one, until all have stopped.
    """
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=end - ids_BT.shape[1],
        eos_token_id=stops.tolist(),
        pad_token_id=int(stops[0]),
    )
    enough = [] if cache is None else [_EnoughHaveStopped(stops, len(ids_BT))]
    with _only(settings, policy):
        return policy.generate(
            ids_BT,
            attention_mask=mask_BT,
            past_key_values=cache,
            stopping_criteria=StoppingCriteriaList(enough),
            streamer=told,
        )


class _EnoughHaveStopped(StoppingCriteria):
    """Ends a pass when so many of its rows have stopped that going on without them pays."""

    def __init__(self, stops: torch.Tensor, num_rows: int):
        self._stops = stops
        self._enough = max(1, num_rows // _SHARE_LEFT_BEHIND)
        self._have_stopped_B = torch.zeros(num_rows, dtype=torch.bool, device=stops.device)

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        self._have_stopped_B |= torch.isin(input_ids[:, -1], self._stops)
        return (self._have_stopped_B.sum() >= self._enough).expand(len(input_ids))


@contextlib.contextmanager
def _only(settings: GenerationConfig, policy: PolicyModel) -> Iterator[None]:
    """Generation follows these settings alone; else transformers fills gaps from the model's own."""
    own = policy.model.generation_config
    policy.model.generation_config = settings
    try:
        yield
    finally:
        policy.model.generation_config = own


def until_stop(token_ids: Sequence[int], stop_token_ids: set[int]) -> Generation:
    """What was written before the first stop token; what stands behind one is padding."""
    for place, token_id in enumerate(token_ids):
        if token_id in stop_token_ids:
            return Generation(tuple(token_ids[:place]), stopped=True)
    return Generation(tuple(token_ids), stopped=False)


def ends_in_loop(token_ids: Sequence[int]) -> bool:
    """Whether the last tokens are one stretch repeated three times or more, over sixteen tokens at least.

    The first repetition may be begun in its middle, where sixteen tokens are no whole number of stretches.

    >>> ends_in_loop([5, 8] + [1, 2, 3, 4] * 4), ends_in_loop([1, 2, 3, 4] * 4 + [5]), ends_in_loop([7] * 15)
    (True, False, False)
    """
    ids = list(token_ids)
    for period in range(1, len(ids) // LOOP_TIMES + 1):
        size = max(LOOP_TIMES * period, LOOP_TOKENS)
        if size <= len(ids) and ids[len(ids) - size + period :] == ids[len(ids) - size : len(ids) - period]:
            return True
    return False
