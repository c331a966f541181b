"""What was exported against what was trained: the same documents and prompts, each by a program of its own.

V vocabulary, T tokens of a document.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from finetooth.base.devices import DeviceManager
from finetooth.base.errors import FinetoothError, problem
from finetooth.data.records import Document
from finetooth.evaluation import plain_reader
from finetooth.evaluation.generation import Generation, generate, until_stop
from finetooth.model.policy import PolicyModel
from finetooth.training.parameter_files import DTYPES

_POSITIONS_AT_ONCE = 64
# Memory for the logits of either side; a vocabulary of 150,000 tokens leaves room for 1,700 positions.
_MOST_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class Questions:
    """What both are asked.

    conversations:  what apply_chat_template is given
    max_new_tokens: of an answer to a prompt
    """

    documents: Sequence[Document]
    prompts: Sequence[Sequence[int]]
    conversations: Sequence[Mapping[str, Any]]
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class BaseOfAdapter:
    """How the base is loaded with which an adapter is used: its type (fp32), or in 4 bits as in training."""

    dtype: str
    is_in_four_bits: bool


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What a policy makes of documents and prompts.

    logits:  float32 [T, V] of each document, on the CPU
    answers: to the prompts, greedy
    """

    logits: Sequence[torch.Tensor]
    answers: Sequence[Generation]

    @property
    def num_stopped(self) -> int:
        """How many answers ended by themselves."""
        return sum(answer.stopped for answer in self.answers)


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What plain transformers, or peft, makes of a folder.

    stop_token_ids: those that generation_config.json names
    rendered:       ids of the conversations that were asked for
    dtype:          in which it computes: float32
    """

    behaviour: Behaviour
    stop_token_ids: tuple[int, ...]
    rendered: Sequence[Sequence[int]]
    dtype: str


@dataclass(frozen=True, slots=True)
class Distance:
    """How far one behaviour is from another.

    largest_logit_difference: over all positions and tokens
    mean_kl:       KL(trained ‖ exported) in nats, mean over positions
    num_positions: over which both were taken
    num_other_answers: how many answers are not the same to the token
    """

    largest_logit_difference: float
    mean_kl: float
    num_positions: int
    num_other_answers: int


def as_many_as_fit(documents: Sequence[Document], *, vocab_size: int) -> list[Document]:
    """The first documents whose logits fit the memory set aside for them; at least one."""
    kept: list[Document] = []
    room = _MOST_BYTES // (4 * vocab_size)
    for document in documents:
        room -= len(document.token_ids)
        if kept and room < 0:
            break
        kept.append(document)
    return kept


@torch.no_grad()
def behaviour_of(
    policy: PolicyModel, asked: Questions, *, stop_token_ids: Sequence[int], devices: DeviceManager
) -> Behaviour:
    """What a policy in memory does; devices: decide the precision in which it computes."""
    policy.eval()
    logits: list[torch.Tensor] = []
    for document in asked.documents:
        ids = torch.tensor(document.token_ids.tolist(), device=policy.device)[None]
        with devices.autocast():
            output = policy(input_ids=ids)
        assert not isinstance(output, torch.Tensor), "padded rows give logits"
        logits.append(output.logits[0].float().cpu())
    answers = generate(
        policy,
        asked.prompts,
        max_new_tokens=asked.max_new_tokens,
        stop_token_ids=stop_token_ids,
        devices=devices,
    )
    return Behaviour(logits, answers)


def reload(folder: Path, asked: Questions, *, device: str, base: BaseOfAdapter | None = None) -> Reloaded:
    """What a folder does in a fresh process that knows no finetooth, without network.

    base: where the folder holds an adapter. Raises FinetoothError where that process fails.
    """
    request = {
        "documents": [document.token_ids.tolist() for document in asked.documents],
        "prompts": [list(prompt) for prompt in asked.prompts],
        "conversations": list(asked.conversations),
        "max_new_tokens": asked.max_new_tokens,
        "device": device,
        "base": None if base is None else {**asdict(base), "dtype": str(DTYPES[base.dtype])[6:]},
    }
    with tempfile.TemporaryDirectory(prefix="finetooth-export-") as name:
        answers = Path(name)
        (answers / "request.json").write_text(json.dumps(request), encoding="utf-8")
        _run(folder.absolute(), answers)
        said = json.loads((answers / "said.json").read_bytes())
        logits = load_file(answers / "logits.safetensors")
    stops = set(said["stop_token_ids"])
    return Reloaded(
        behaviour=Behaviour(
            [logits[str(number)] for number in range(len(asked.documents))],
            [until_stop(token_ids, stops) for token_ids in said["answers"]],
        ),
        stop_token_ids=tuple(said["stop_token_ids"]),
        rendered=said["rendered"],
        dtype=said["dtype"],
    )


def distance(trained: Behaviour, exported: Behaviour) -> Distance:
    """How far what was exported is from what was trained."""
    largest, kl_sum, num_positions = 0.0, 0.0, 0
    for ours, theirs in zip(trained.logits, exported.logits, strict=True):
        num_columns = min(ours.shape[1], theirs.shape[1])
        if ours.shape[1] != theirs.shape[1]:
            largest = float("inf")
        for start in range(0, len(ours), _POSITIONS_AT_ONCE):
            stop = start + _POSITIONS_AT_ONCE
            one, other = (t[start:stop, :num_columns].double() for t in (ours, theirs))
            largest = max(largest, _largest(one - other))
            log_p, log_q = one.log_softmax(dim=1), other.log_softmax(dim=1)
            kl_sum += float((log_p.exp() * (log_p - log_q)).sum())
        num_positions += len(ours)
    num_other = sum(a != b for a, b in zip(trained.answers, exported.answers, strict=True))
    return Distance(largest, kl_sum / max(1, num_positions), num_positions, num_other)


def _largest(differences: torch.Tensor) -> float:
    """The largest absolute value; infinite where one is not a number, which no comparison would notice."""
    largest = float(differences.abs().max())
    return largest if largest == largest else float("inf")


def _run(folder: Path, answers: Path) -> None:
    """Starts the program; -P keeps the folder that it lies in out of what it may import."""
    command = [sys.executable, "-P", plain_reader.__file__, str(folder), str(answers / "request.json")]
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment = {**os.environ, **quiet}
    done = subprocess.run(
        [*command, str(answers)], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        remedy = "the export cannot be used as it is: report this mistake of finetooth"
        raise FinetoothError(problem(folder, f"plain transformers does not load it: {said}", remedy))
