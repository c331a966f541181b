"""A source names files: one, a folder's, a pattern's, a saved dataset's; nothing is lost in silence."""

import json
import os
from pathlib import Path

import pytest

from finetooth.base.errors import DataError
from finetooth.config.sources import SourceConfig
from finetooth.data.sources.file_names import split_of
from finetooth.data.sources.files import files_of
from finetooth.data.sources.reading import ending_of


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test works in a folder of its own, so that paths are short and relative."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(*names: str, content: str = "{}") -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(content)


def files(path: str) -> list[str]:
    return files_of(SourceConfig(path=path), place="data.train")


def refusal(path: str) -> str:
    with pytest.raises(DataError) as caught:
        files(path)
    return str(caught.value)


def test_a_file_is_itself_as_the_user_wrote_it(folder: Path):
    put("a.jsonl", "odd[1]*.jsonl", "notes.xyz")
    assert files("a.jsonl") == ["a.jsonl"]
    assert files(f"{folder}/./a.jsonl") == [f"{folder}/./a.jsonl"]
    assert files("odd[1]*.jsonl") == ["odd[1]*.jsonl"]  # a file of that very name, no pattern
    assert files("notes.xyz") == ["notes.xyz"]  # its reader says what is wrong with it


def test_a_folder_gives_its_data_files_at_any_depth_by_name():
    put("d/b.jsonl", "d/a/z.csv.gz", "d/a/y.parquet", "d/c.json")
    put(
        "d/README.md", "d/LICENSE", "d/.hidden.jsonl", "d/.git/x.jsonl", "d/loader.py", "d/dataset_infos.json"
    )
    assert files("d") == ["d/a/y.parquet", "d/a/z.csv.gz", "d/b.jsonl", "d/c.json"]
    assert files("d/") == ["d/a/y.parquet", "d/a/z.csv.gz", "d/b.jsonl", "d/c.json"]


def test_a_file_named_like_a_readme_that_holds_records_is_data():
    put("d/readme.jsonl", "d/license.txt")
    assert files("d") == ["d/readme.jsonl"]


def test_every_file_of_an_unknown_kind_is_named():
    put("d/a.jsonl", "d/b.xlsx", "d/c", "d/notes.txt")
    tail = (
        "of no kind that holds records; "
        "remove it from d, or name the files to be read by a pattern such as *.jsonl"
    )
    assert refusal("d") == f"d/b.xlsx: {tail}\nd/c: {tail}\nd/notes.txt: {tail}"


def test_token_files_are_given_without_the_labels_beside_them():
    put("d/train.bin", "d/train_labels.bin", "d/meta.json")
    assert files("d") == ["d/train.bin"]
    put("e/meta.json", "e/a.jsonl", "f/some_labels.bin")
    assert files("e") == ["e/a.jsonl", "e/meta.json"]
    assert files("f") == ["f/some_labels.bin"]  # the tokens they belong to are not there


def test_links_to_folders_are_followed_but_not_in_circles():
    put("elsewhere/a.jsonl", "d/b.jsonl")
    os.symlink(Path("elsewhere").resolve(), "d/link")
    os.symlink(Path("d").resolve(), "d/link/circle")
    assert files("d") == ["d/b.jsonl", "d/link/a.jsonl"]


def test_what_is_no_file_is_told_before_anything_waits_for_it():
    os.mkfifo("pipe.jsonl")
    put("d/a.jsonl", "e/a.jsonl")
    os.mkfifo("d/b.jsonl")
    os.symlink("gone", "e/b.jsonl")
    assert refusal("pipe.jsonl") == "pipe.jsonl: not a regular file; copy its content to a file"
    assert refusal("d") == "d/b.jsonl: not a regular file; copy its content to a file"
    assert refusal("e/*") == (
        "e/b.jsonl: no such file; check the path, which is relative to the working directory"
    )


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["train.jsonl", "test.jsonl"], "d/test.jsonl, d/train.jsonl"),
        (["dev/a.jsonl", "train/a.jsonl", "train/b.jsonl"], "d/dev/a.jsonl, d/train/a.jsonl"),
        (["a-val-00000-of-00001.parquet", "a-train-00000-of-00001.parquet"], None),
    ],
)
def test_a_folder_with_several_splits_is_not_one_heap(names: list[str], shown: str | None):
    put(*(f"d/{name}" for name in names))
    shown = shown or "d/a-train-00000-of-00001.parquet, d/a-val-00000-of-00001.parquet"
    assert refusal("d") == (
        f"d: holds several splits ({shown}); name the files of one, for instance by a pattern"
    )
    assert len(files("d/**/*.*")) == len(names)  # who names them by a pattern has chosen


def test_a_pattern_gives_what_it_matches_in_order():
    put("d/b.jsonl", "d/a.jsonl", "d/.c.jsonl", "d/deep/er/a.csv", "d/README.md")
    assert files("d/*.jsonl") == ["d/a.jsonl", "d/b.jsonl"]
    assert files("d/[a]*") == ["d/a.jsonl"]
    assert files("d/**") == ["d/a.jsonl", "d/b.jsonl", "d/deep/er/a.csv"]
    assert files("**/a.*") == ["d/a.jsonl", "d/deep/er/a.csv"]


def test_a_path_that_names_nothing_is_told():
    put("d/deep/a.jsonl")
    Path("empty").mkdir()
    put("read/README.md")
    assert refusal("no.jsonl") == (
        "no.jsonl: no such file; check the path, which is relative to the working directory"
    )
    assert refusal("d/*.jsonl") == "d/*.jsonl: matches no file; check the pattern"
    assert refusal("d/*") == "d/*: matches the folder d/deep; write d/*/** to read the files in it"
    assert refusal("empty") == "empty: holds no file of records; name the folder that holds them"
    assert refusal("read") == "read: holds no file of records; name the folder that holds them"


def test_a_folder_that_may_not_be_listed_is_told(monkeypatch: pytest.MonkeyPatch):
    put("d/a.jsonl")

    def denied(path: str) -> list[str]:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "listdir", denied)
    assert refusal("d") == "d: cannot be listed (Permission denied); allow reading it"


def test_shards_that_are_missing_are_told():
    put("d/a-00000-of-00003.parquet", "d/a-00002-of-00003.parquet", "d/b-0-of-1.jsonl")
    told = "d/a-*-of-00003.parquet are 2 files; add what is missing of 3"
    assert refusal("d") == f"d: {told}"
    assert refusal("d/*") == f"d/*: {told}"
    assert files("d/a-00000-of-00003.parquet") == ["d/a-00000-of-00003.parquet"]  # who names one means one
    put("d/a-00001-of-00003.parquet")
    assert len(files("d")) == 4


def saved(folder: str, *shards: str, **more: object) -> None:
    put(f"{folder}/dataset_info.json", *(f"{folder}/{shard}" for shard in shards))
    state = {"_data_files": [{"filename": shard} for shard in shards], **more}
    put(f"{folder}/state.json", content=json.dumps(state))


def test_a_saved_dataset_gives_the_shards_of_its_state_in_their_order():
    saved("d", "data-00001-of-00002.arrow", "data-00000-of-00002.arrow")
    put("d/cache-1f2e.arrow")  # what datasets leaves beside them is not the dataset
    assert files("d") == ["d/data-00001-of-00002.arrow", "d/data-00000-of-00002.arrow"]
    put("e/b.jsonl")
    saved("e/a", "data-00000-of-00001.arrow")
    assert files("e") == ["e/a/data-00000-of-00001.arrow", "e/b.jsonl"]


def test_a_saved_dataset_with_splits_names_them():
    put("d/dataset_dict.json", content='{"splits": ["train", "test"]}')
    saved("d/train", "data-00000-of-00001.arrow")
    assert refusal("d") == "d: a saved dataset with the splits train, test; write d/train"
    assert files("d/train") == ["d/train/data-00000-of-00001.arrow"]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("{", "cannot be read as JSON; write or copy the folder again"),
        ("[" * 100_000, "cannot be read as JSON; write or copy the folder again"),
        ('{"_data_files": []}', "does not name the shards as files beside it; save the dataset again"),
        ('{"_data_files": 5}', "does not name the shards as files beside it; save the dataset again"),
        (
            '{"_data_files": [{"filename": "../secret.arrow"}]}',
            "does not name the shards as files beside it; save the dataset again",
        ),
        (
            '{"_data_files": [{"filename": "a.arrow"}], "_indices_data_files": [{"filename": "i.arrow"}]}',
            "the dataset is a selection by indices; flatten_indices() and save again",
        ),
    ],
)
def test_a_state_that_cannot_be_followed_is_told(state: str, message: str):
    put("d/a.arrow")
    put("d/state.json", content=state)
    assert refusal("d") == f"d/state.json: {message}"


def test_a_state_of_something_else_is_passed_over():
    put("d/a.jsonl")
    put("d/state.json", content='{"next_step": 3}')
    assert files("d") == ["d/a.jsonl"]


def test_endings_and_splits_are_read_from_names():
    assert [ending_of(name) for name in ("a.JSONL.GZ", "x/.b", "a.tar.gz")] == [".jsonl.gz", "", ".tar.gz"]
    assert [split_of(name) for name in ("TRAIN.jsonl", "a/val/b.csv", "latest.csv", "train_test.csv")] == [
        "train",
        "validation",
        None,
        None,
    ]
