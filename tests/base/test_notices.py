"""A rank that fails leaves a notice; those that waited for it in vain end with its reason."""

from pathlib import Path

import pytest
import torch.distributed as dist

from finetooth.base import distributed
from finetooth.base.distributed import ALONE, Notices, RankLostError, Ranks
from finetooth.base.errors import DataError, FinetoothError, NonFiniteError, Stopped, ToldElsewhere

ZERO, ONE = Ranks(0, 2), Ranks(1, 2)
LOST = "[pair.cc:537] gloo: Connection closed by peer [127.0.0.1]:31150"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dist.Store:
    monkeypatch.setattr(distributed, "_LISTENING_SECONDS", 0.2)
    return dist.FileStore(str(tmp_path / "store"), 2)


def failing(ranks: Ranks, error: Exception) -> BaseException:
    with pytest.raises(type(error)) as caught, ranks.doing("step 17, reading documents"):
        raise error
    return caught.value


def lost(ranks: Ranks) -> RankLostError:
    with pytest.raises(RankLostError) as caught, ranks.doing("step 17, backward"):
        raise RuntimeError(LOST)
    return caught.value


def test_the_failure_of_one_rank_is_told_with_rank_step_and_phase(store: dist.Store):
    told = Notices(store, ONE).explain(failing(ONE, DataError("a.jsonl:3: broken; mend it")))
    assert isinstance(told, FinetoothError)
    sentence = "rank 1, step 17, reading documents: a.jsonl:3: broken; mend it"
    assert (told.problems, told.exit_code) == ([sentence], 3)
    waiting = Notices(store, ZERO).explain(lost(ZERO))
    assert isinstance(waiting, ToldElsewhere)
    assert (waiting.problems, waiting.exit_code) == ([sentence], 3)


def test_that_another_rank_was_stopped_alone_is_told_by_rank_0(store: dist.Store):
    stopped = failing(ONE, Stopped("run: stopped by SIGINT; start it again", exit_code=130))
    assert isinstance(Notices(store, ONE).explain(stopped), ToldElsewhere)
    told = Notices(store, ZERO).explain(lost(ZERO))
    assert type(told) is Stopped, "and not one that is told elsewhere"
    assert told.exit_code == 130
    assert str(told) == "rank 1, step 17, reading documents: run: stopped by SIGINT; start it again"


def test_a_rank_that_says_nothing_is_named(store: dist.Store):
    told = Notices(store, ZERO).explain(lost(ZERO))
    assert str(told) == (
        "rank 0, step 17, backward: rank 1 does not answer; look at its last lines, and go on with --resume"
    )


def test_of_several_that_wait_the_first_tells(store: dist.Store):
    store.set("waiting/0", "")
    assert isinstance(Notices(store, ONE).explain(lost(ONE)), ToldElsewhere)


def test_what_every_rank_meets_is_told_by_rank_0_alone(store: dist.Store):
    error = NonFiniteError("step 2: the loss is nan; look")
    assert Notices(store, ZERO).explain(error) is error
    assert isinstance(Notices(store, ONE).explain(error), ToldElsewhere)


def test_another_runtime_error_stays_what_it_is():
    """Negative control of what counts as a lost rank."""
    with pytest.raises(RuntimeError, match="shapes") as caught, ONE.doing("step 17, forward"):
        raise RuntimeError("shapes do not match")
    assert not isinstance(caught.value, FinetoothError)
    with pytest.raises(RuntimeError, match="gloo"), ALONE.doing("step 17, forward"):
        raise RuntimeError(LOST)
