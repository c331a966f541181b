"""Errors are worded one way, counted when they are many, and each has its exit code."""

import pickle

import pytest

from finetooth.base import errors
from finetooth.base.errors import FinetoothError, Stopped, problem


def test_a_problem_is_place_fact_remedy():
    assert problem("run.yaml:5", "no such key", "write seed") == "run.yaml:5: no such key; write seed"


@pytest.mark.parametrize(
    ("name", "exit_code"),
    [
        ("FinetoothError", 1),
        ("ConfigError", 2),
        ("DataError", 3),
        ("DeviceMemoryError", 4),
        ("NonFiniteError", 1),
        ("Stopped", 75),
    ],
)
def test_every_error_has_the_exit_code_its_tree_shows(name: str, exit_code: int):
    kind = getattr(errors, name)
    assert issubclass(kind, FinetoothError)
    assert kind("a: b; c").exit_code == exit_code
    assert f"{name}" in (errors.__doc__ or "")


def test_a_stop_by_hand_has_an_exit_code_of_its_own():
    assert Stopped("stopped", exit_code=130).exit_code == 130


def test_one_problem_and_many_are_told_alike():
    assert FinetoothError("a: b; c").problems == ["a: b; c"]
    assert str(FinetoothError(["a: b; c", "d: e; f"])) == "a: b; c\nd: e; f"
    assert str(FinetoothError(line for line in ["a: b; c"])) == "a: b; c"


@pytest.mark.parametrize(
    ("number", "last_line"), [(50, "x 49: y; z"), (51, "… and 1 more"), (70, "… and 20 more")]
)
def test_fifty_problems_are_shown_and_the_rest_counted(number: int, last_line: str):
    error = FinetoothError(problem(f"x {place}", "y", "z") for place in range(number))
    assert len(error.problems) == number
    assert str(error).split("\n")[-1] == last_line
    assert len(str(error).split("\n")) == min(number, 51)


def test_an_error_without_a_problem_is_our_own_mistake():
    with pytest.raises(AssertionError, match="an error needs at least one problem"):
        FinetoothError([])


def test_an_error_crosses_process_borders():
    assert pickle.loads(pickle.dumps(FinetoothError(["a: b; c"]))).problems == ["a: b; c"]
