"""A dataset of the hub gives the files of one split, from the cache where it holds them all."""

import fnmatch
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from finetooth.base import hub
from finetooth.base.errors import ConfigError, DataError
from finetooth.config.sources import SourceConfig
from finetooth.data.sources.files import files_of


class DatasetHub:
    """Stands for the hub's library: what lies on the hub, a cache, and a network that can be cut.

    As the library does, a copy in the cache is given only where every file that is asked for lies in it.
    """

    def __init__(self, folder: Path):
        self.remote, self.cache = folder / "remote", folder / "set" / "snapshots" / "c0"
        self.is_online, self.num_requests = True, 0
        self.remote.mkdir()

    def put(self, *names: str, content: str = '{"a": 1}\n') -> None:
        for name in names:
            (self.remote / name).parent.mkdir(parents=True, exist_ok=True)
            (self.remote / name).write_text(content)

    def forget(self) -> None:
        shutil.rmtree(self.cache.parents[1], ignore_errors=True)

    def snapshot_download(
        self,
        name: str,
        *,
        repo_type: str,
        allow_patterns: list[str],
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> str:
        assert (name, repo_type, revision or "c0") == ("own/set", "dataset", "c0")
        files = (file for file in self.remote.rglob("*") if file.is_file())
        names = [file.relative_to(self.remote).as_posix() for file in files]
        asked = [n for n in names if any(fnmatch.fnmatchcase(n, p) for p in allow_patterns)]
        missing = [name for name in asked if not (self.cache / name).exists()]
        if local_files_only or not self.is_online:
            if missing or not self.cache.exists():
                raise LocalEntryNotFoundError("not whole")
            return str(self.cache)
        self.num_requests += 1
        for file in missing:
            (self.cache / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.remote / file, self.cache / file)
        listing = self.cache.parents[1] / "trees" / "c0.json"
        listing.parent.mkdir(parents=True, exist_ok=True)
        self.cache.mkdir(parents=True, exist_ok=True)
        listing.write_text(json.dumps({"files": {file: {} for file in names}}))
        return str(self.cache)

    def files(self, path: str) -> list[str]:
        found = files_of(SourceConfig(path=path), place="data.train")
        assert all(Path(file).is_file() for file in found)
        return [Path(file).relative_to(self.cache).as_posix() for file in found]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DatasetHub:
    stand_in = DatasetHub(tmp_path)
    monkeypatch.setattr(hub, "snapshot_download", stand_in.snapshot_download)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return stand_in


def refusal(call: Callable[[str], Any], path: str) -> str:
    with pytest.raises(ConfigError) as caught:
        call(path)
    return str(caught.value)


CARD = """---
license: mit
configs:
- config_name: main
  default: true
  data_files:
  - split: train
    path: main/train-*
  - split: test
    path: [main/test-*]
- config_name: other
  data_files: "other/**/*.jsonl"
- config_name: nothing
---
# A dataset
"""


def with_card(own: DatasetHub) -> None:
    own.put("README.md", content=CARD)
    own.put("main/train-00000-of-00002.parquet", "main/train-00001-of-00002.parquet")
    own.put("main/test-00000-of-00001.parquet", "other/b.jsonl", "other/deep/a.jsonl", "other/c.csv")


def test_the_card_says_which_files_a_split_has(own: DatasetHub):
    with_card(own)
    train = ["main/train-00000-of-00002.parquet", "main/train-00001-of-00002.parquet"]
    for path in ("hf://own/set", "hf://own/set/", "hf://own/set/train", "hf://own/set/main"):
        assert own.files(path) == train
    assert own.files("hf://datasets/own/set/main/train") == train
    assert not (own.cache / "main/test-00000-of-00001.parquet").exists()  # nothing is fetched for nothing
    assert own.files("hf://own/set/test") == ["main/test-00000-of-00001.parquet"]
    assert own.files("hf://own/set/other") == ["other/b.jsonl", "other/deep/a.jsonl"]


def test_the_card_says_what_there_is(own: DatasetHub):
    with_card(own)
    assert refusal(own.files, "hf://own/set/sub") == (
        "data.train: hf://own/set: no configuration 'sub'; write hf://own/set/ and one of main, other"
    )
    assert refusal(own.files, "hf://own/set/other/test") == (
        "data.train: hf://own/set: no split 'test' in 'other'; it has train"
    )
    own.put("README.md", content=CARD.replace("  default: true\n", ""))
    own.forget()
    assert refusal(own.files, "hf://own/set") == (
        "data.train: hf://own/set: several configurations; write hf://own/set/ and one of main, other"
    )


def test_a_card_leads_nowhere_else(own: DatasetHub):
    secret = own.remote.parent / "secret.jsonl"
    secret.write_text("{}")
    own.put("README.md", content="---\nconfigs:\n- data_files: ../../../secret.jsonl\n---\n")
    assert refusal(own.files, "hf://own/set") == (
        "data.train: hf://own/set: no file matches ../../../secret.jsonl; "
        "look up the names of its files on its page"
    )
    own.put("README.md", content="---\nconfigs: [\n---\n")
    own.forget()
    assert refusal(own.files, "hf://own/set") == (
        "data.train: hf://own/set: the head of its README.md cannot be read; "
        "name its files: hf://own/set/FILE"
    )


def test_files_can_be_named(own: DatasetHub):
    with_card(own)
    assert own.files("hf://own/set/other/b.jsonl") == ["other/b.jsonl"]
    assert own.files("hf://own/set/other/*.jsonl") == ["other/b.jsonl"]
    own.put("top.jsonl")
    own.forget()
    assert own.files("hf://own/set/**/*.jsonl") == ["other/b.jsonl", "other/deep/a.jsonl", "top.jsonl"]
    assert refusal(own.files, "hf://own/set/no.jsonl") == (
        "data.train: hf://own/set: no file matches no.jsonl; look up the names of its files on its page"
    )


@pytest.mark.parametrize(
    ("names", "path", "expected"),
    [
        (["data/train-0.parquet", "data/test-0.parquet"], "", ["data/train-0.parquet"]),
        (["data/train-0.parquet", "data/test-0.parquet"], "/test", ["data/test-0.parquet"]),
        (["train.jsonl", "val.jsonl"], "/validation", ["val.jsonl"]),
        (["train.jsonl", "train/0.parquet", "train/1.parquet"], "", ["train/0.parquet", "train/1.parquet"]),
        (["alpaca.json", "LICENSE"], "", ["alpaca.json"]),
        (["a/train.jsonl", "b/train.jsonl"], "/b", ["b/train.jsonl"]),
        (["a/train.jsonl", "a/test.jsonl.gz"], "/a/test", ["a/test.jsonl.gz"]),
        (["Train.csv", "test.csv"], "", ["Train.csv"]),
        (
            ["data/train_sft-0.parquet", "data/test_sft-0.parquet"],
            "/data/train_sft",
            ["data/train_sft-0.parquet"],
        ),
    ],
)
def test_without_a_card_names_tell_the_split(
    own: DatasetHub, names: list[str], path: str, expected: list[str]
):
    own.put(*names)
    assert own.files(f"hf://own/set{path}") == expected
    own.is_online = False
    assert own.files(f"hf://own/set{path}") == expected  # the cache holds what the network gave


def test_names_that_tell_nothing_or_too_much_are_refused(own: DatasetHub):
    own.put("main/train.jsonl", "easy/train.jsonl", "loader.py")
    assert refusal(own.files, "hf://own/set") == (
        "data.train: hf://own/set: its files lie in several folders (easy, main); write hf://own/set/main"
    )
    assert refusal(own.files, "hf://own/set/main/test") == (
        "data.train: hf://own/set: no file of the split 'test' in 'main'; "
        "it has easy/train.jsonl, main/train.jsonl"
    )
    shutil.rmtree(own.remote)
    own.forget()
    own.put("loader.py")
    assert refusal(own.files, "hf://own/set") == (
        "data.train: hf://own/set: no file of the split 'train'; it has no file of records"
    )


def test_the_network_is_asked_for_what_the_cache_lacks_only(own: DatasetHub):
    with_card(own)
    own.files("hf://own/set")
    before = own.num_requests
    own.is_online = False
    assert len(own.files("hf://own/set")) == 2
    assert own.num_requests == before
    (own.cache / "main/train-00001-of-00002.parquet").unlink()  # as a broken download leaves it
    assert refusal(own.files, "hf://own/set") == (
        "data.train: hf://own/set: not in the local cache, and the hub is unreachable; check the network"
    )
    own.is_online = True
    assert len(own.files("hf://own/set")) == 2


def test_a_part_of_a_split_in_the_cache_is_not_the_split(own: DatasetHub):
    own.put("a-train.jsonl", "b-train.jsonl")
    own.files("hf://own/set")
    (own.cache / "b-train.jsonl").unlink()
    own.is_online = False
    refusal(own.files, "hf://own/set")
    own.is_online = True
    assert own.files("hf://own/set") == ["a-train.jsonl", "b-train.jsonl"]


def test_shards_that_the_hub_lacks_are_told(own: DatasetHub):
    own.put("train-00000-of-00002.parquet")
    with pytest.raises(DataError) as caught:
        own.files("hf://own/set")
    assert "train-*-of-00002.parquet are 1 files; add what is missing of 2" in str(caught.value)


@pytest.mark.parametrize("path", ["hf://", "hf://set", "hf:///set", "hf://own//train"])
def test_what_names_no_dataset_is_told(own: DatasetHub, path: str):
    assert refusal(own.files, path) == f"data.train: {path}: no name of a dataset; write hf://OWNER/NAME"
    assert refusal(own.files, "hf://own/set/a/b/c") == (
        "data.train: hf://own/set/a/b/c: too many parts; write hf://OWNER/NAME/CONFIG/SPLIT"
    )


def test_a_listing_that_leads_elsewhere_or_is_not_there_is_no_listing(own: DatasetHub):
    own.put("train.jsonl")
    assert own.files("hf://own/set") == ["train.jsonl"]
    listing = own.cache.parents[1] / "trees" / "c0.json"
    for content in ("", "[]", '{"files": 5}', '{"files": {"../train.jsonl": {}}}', '{"files": {"/a": {}}}'):
        listing.write_text(content)
        before = own.num_requests
        assert own.files("hf://own/set") == ["train.jsonl"]  # asked of the hub again
        assert own.num_requests == before + 1

    def as_before_1_22(name: str, **options: Any) -> str:
        path = DatasetHub.snapshot_download(own, name, **options)
        listing.unlink(missing_ok=True)
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub, "snapshot_download", as_before_1_22)
        assert refusal(own.files, "hf://own/set") == (
            "data.train: hf://own/set: the list of its files is not in the cache; "
            "allow the network once, with huggingface_hub 1.22 or later"
        )


def test_the_library_itself_reads_its_cache_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The stand-in above behaves as the library does."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    def find(path: str) -> list[str]:
        return files_of(SourceConfig(path=path), place="data.dev")

    not_there = "not in the local cache, and offline mode is on; unset HF_HUB_OFFLINE to fetch it"
    assert refusal(find, "hf://own/set") == f"data.dev: hf://own/set: {not_there}"
    assert refusal(find, "hf://--/set") == (
        "data.dev: hf://--/set: not a valid hub name; write hf://OWNER/NAME"
    )
    commit, storage = "0" * 40, tmp_path / "datasets--own--set"
    snapshot = storage / "snapshots" / commit
    for folder in (snapshot, storage / "refs", storage / "trees"):
        folder.mkdir(parents=True)
    (storage / "refs" / "main").write_text(commit)
    (snapshot / "a-train.jsonl").write_text("{}")
    assert refusal(find, "hf://own/set") == (  # what is there may be a part only
        "data.dev: hf://own/set: the list of its files is not in the cache; "
        "allow the network once, with huggingface_hub 1.22 or later"
    )
    files = {name: {"size": 2, "blob_id": "0" * 40} for name in ("a-train.jsonl", "b-train.jsonl")}
    (storage / "trees" / f"{commit}.json").write_text(json.dumps({"format_version": 1, "files": files}))
    assert refusal(find, "hf://own/set") == f"data.dev: hf://own/set: {not_there}"  # it is
    (snapshot / "b-train.jsonl").write_text("{}")
    assert find("hf://own/set") == [str(snapshot / name) for name in files]
