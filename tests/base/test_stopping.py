"""A first signal stops a run at once, or is noted while it trains; a second ends the process."""

import contextlib
import os
import signal
import subprocess
import sys
import threading

import pytest
from tests.small_run import SOURCES

from finetooth.base.errors import Stopped
from finetooth.base.stopping import StopRequest

NUMBERS = [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)]


def run_code(code: str, **variables: str) -> tuple[int, str]:
    """Exit code and output of a program that listens to signals, sent by itself with `send`."""
    opening = (
        "import os, signal, time\n"
        "from finetooth.base.stopping import StopRequest\n"
        "def send(number): os.kill(os.getpid(), number)\n"
        "def say(text): print(text, flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", opening + code],
        env={**os.environ, "PYTHONPATH": str(SOURCES), **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize(("number", "exit_code"), NUMBERS)
def test_before_training_a_signal_stops_at_once(number: signal.Signals, exit_code: int):
    with StopRequest().listening(), pytest.raises(Stopped) as caught:
        os.kill(os.getpid(), number)
    sentence = f"run: stopped by {number.name} before the first step; start it with the same command"
    assert (str(caught.value), caught.value.exit_code) == (sentence, exit_code)


def test_a_stop_that_was_swallowed_is_raised_again_when_training_begins():
    """As within a destructor, where Python prints exceptions and goes on."""
    with StopRequest().listening() as stop:
        with contextlib.suppress(Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped):
            stop.hold()


@pytest.mark.parametrize(("number", "exit_code"), NUMBERS)
def test_while_training_a_signal_is_noted_and_the_handlers_come_back(number: signal.Signals, exit_code: int):
    before = signal.getsignal(number)
    with StopRequest().listening() as stop:
        stop.hold()
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


TWICE = (
    "with StopRequest().listening() as stop:\n"
    "    stop.hold()\n"
    "    send(signal.SIGTERM); say('noted')\n"
    "    {wait}\n"
    "    send(signal.SIGTERM); say('again')\n"
)


def test_a_second_signal_ends_the_process():
    assert run_code(TWICE.format(wait="pass")) == (-signal.SIGTERM, "noted\n")


@pytest.mark.parametrize(
    ("wait", "outcome"), [("pass", (0, "noted\nagain\n")), ("time.sleep(1.1)", (-signal.SIGTERM, "noted\n"))]
)
def test_under_torchrun_a_signal_that_comes_twice_in_a_second_is_one(wait: str, outcome: tuple[int, str]):
    """The terminal sends Ctrl-C to all processes, and torchrun sends its own signal besides."""
    assert run_code(TWICE.format(wait=wait), TORCHELASTIC_RUN_ID="none") == outcome


def test_at_the_deadline_the_process_is_ended_whatever_it_is_doing():
    code = (
        "with StopRequest().listening() as stop:\n"
        "    stop.hold(deadline=0.2, give_up=lambda: (say('late'), os._exit(stop.exit_code)))\n"
        "    send(signal.SIGUSR1); say('noted')\n"
        "    time.sleep(60)\n"
    )
    assert run_code(code) == (75, "noted\nlate\n")


def test_what_ends_in_time_is_not_ended_later():
    code = (
        "with StopRequest().listening() as stop:\n"
        "    stop.hold(deadline=0.2, give_up=lambda: os._exit(9))\n"
        "    send(signal.SIGUSR1)\n"
        "time.sleep(0.5)\n"
    )
    assert run_code(code) == (0, "")


def test_what_is_saved_may_take_its_time():
    code = (
        "with StopRequest().listening() as stop:\n"
        "    stop.hold(deadline=0.3, give_up=lambda: os._exit(9))\n"
        "    {first}; {then}\n"
        "    time.sleep(0.6)\n"
    )
    for first, then in (("send(signal.SIGUSR1)", "stop.settle()"), ("stop.settle()", "send(signal.SIGUSR1)")):
        assert run_code(code.format(first=first, then=then)) == (0, "")


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
