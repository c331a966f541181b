"""Documents are blamed one by one; the first signal is noted, the second ends the process."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tests.documents import Documents, random_documents, small_policy
from tests.small_run import SOURCES

from finetooth.base.devices import DeviceManager
from finetooth.model.policy import PolicyModel
from finetooth.training.guards import StopRequest, blame_documents

CPU = DeviceManager("cpu", "fp32")


def poisoned(documents: Documents, numbers: Sequence[int]) -> PolicyModel:
    """A policy that gives no finite loss for these documents: a token of theirs is infinite."""
    policy = small_policy(tie_word_embeddings=False)
    for number, document in enumerate(documents.documents):
        document.token_ids[document.token_ids == 63] = 1
        if number in numbers:
            document.token_ids[0] = 63
    with torch.no_grad():
        policy.model.get_input_embeddings().weight[63] = torch.inf
    return policy


def test_the_documents_whose_own_loss_is_not_finite_are_named():
    documents = random_documents(9)
    policy = poisoned(documents, (2, 5))
    blame = blame_documents(policy, documents, numbers=range(9), devices=CPU)
    assert blame == "documents whose own loss is not finite: random.jsonl:3, random.jsonl:6"


def test_only_the_documents_of_the_step_are_looked_at():
    documents = random_documents(9)
    policy = poisoned(documents, (2, 5))
    blame = blame_documents(policy, documents, numbers=[5, 7], devices=CPU)
    assert blame == "documents whose own loss is not finite: random.jsonl:6"


def test_where_each_is_finite_alone_all_are_named():
    blame = blame_documents(small_policy(), random_documents(3), numbers=[2, 0], devices=CPU)
    assert blame == (
        "documents of this step: random.jsonl:3, random.jsonl:1; each is finite alone, "
        "so the learning rate or the model is to blame"
    )


def test_ten_documents_are_named_and_the_rest_counted():
    documents = random_documents(12)
    blame = blame_documents(poisoned(documents, range(12)), documents, numbers=range(12), devices=CPU)
    named = ", ".join(f"random.jsonl:{line}" for line in range(1, 11))
    assert blame == f"documents whose own loss is not finite: {named} and 2 more"


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)]
)
def test_a_signal_is_noted_and_the_handlers_come_back(number: signal.Signals, exit_code: int):
    before = signal.getsignal(number)
    with StopRequest().listening() as stop:
        assert stop.signal is None
        os.kill(os.getpid(), number)
        assert stop.signal is number
        assert signal.getsignal(number) == before, "a second signal meets the usual handler"
    assert stop.exit_code == exit_code
    assert signal.getsignal(number) == before


def test_the_handlers_come_back_after_a_failure():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="failed"), StopRequest().listening():
        raise ValueError("failed")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_signal_ends_the_process(tmp_path: Path):
    code = (
        "import os, signal\n"
        "from finetooth.training.guards import StopRequest\n"
        "with StopRequest().listening():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('noted', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('never', flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(SOURCES)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "noted\n")


def test_another_thread_trains_without_listening():
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def train() -> None:
        with StopRequest().listening() as stop:
            seen.extend([stop.signal, signal.getsignal(signal.SIGTERM)])

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert seen == [None, before]
