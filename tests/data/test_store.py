"""A store gives back what was written, and damage is told."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetooth.base.errors import DataError
from finetooth.data.records import Document, Origin
from finetooth.data.store import ContentHashes, DocumentStore, StoreWriter, open_store


def make(token_ids: list[int], num_targets: int = 1, *, line: int = 1, path: str = "t.jsonl") -> Document:
    num_context = len(token_ids) - num_targets
    return Document(
        token_ids=np.array(token_ids, np.int32),
        loss_weights=np.array([0] * num_context + [1] * num_targets, np.float32),
        prompt_length=num_context,
        origin=Origin(path, line),
    )


def write(folder: Path, documents: list[Document]) -> DocumentStore:
    folder.mkdir(exist_ok=True)
    with StoreWriter(folder, tokenizer_fingerprint="tok", template_fingerprint="tem") as writer:
        for document in documents:
            writer.append(document)
    store = open_store(folder)
    hashes = ContentHashes()
    for number in range(store.num_documents):
        hashes.add_document(store.document(number))
    assert store.fingerprint == hashes.fingerprint()
    return store


def same(a: Document, b: Document) -> bool:
    return (
        np.array_equal(a.token_ids, b.token_ids)
        and np.array_equal(a.loss_weights, b.loss_weights)
        and (a.prompt_length, a.origin) == (b.prompt_length, b.origin)
    )


@st.composite
def some_document(draw: st.DrawFn) -> Document:
    token_ids = draw(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=20))
    weights = [0.0, *(draw(st.floats(0, 1000, width=32)) for _ in token_ids[1:])]
    return Document(
        token_ids=np.array(token_ids, np.int32),
        loss_weights=np.array(weights, np.float32),
        prompt_length=draw(st.integers(0, len(token_ids))),
        origin=Origin(draw(st.sampled_from(["a.jsonl", "ü.json"])), draw(st.integers(1, 2**40))),
    )


@settings(deadline=None, max_examples=50)
@given(documents=st.lists(some_document(), min_size=1, max_size=8))
def test_what_was_written_is_read(tmp_path_factory, documents: list[Document]):
    store = write(tmp_path_factory.mktemp("store"), documents)
    assert store.num_documents == len(documents)
    assert all(same(store.document(i), document) for i, document in enumerate(documents))
    assert store.lengths.tolist() == [len(d.token_ids) for d in documents]
    assert store.num_targets.tolist() == [d.num_targets for d in documents]
    assert store.num_tokens == sum(store.lengths)
    assert (store.tokenizer_fingerprint, store.template_fingerprint) == ("tok", "tem")
    totals = [sum(float(w) for w in d.loss_weights) for d in documents]
    np.testing.assert_allclose(store.loss_weight_totals, totals, rtol=1e-12)
    dtypes = (store.lengths.dtype, store.num_targets.dtype, store.loss_weight_totals.dtype)
    assert dtypes == (np.int64, np.int64, np.float64)
    assert (store.token_ids.dtype, store.loss_weights.dtype) == (np.int32, np.float32)


def test_the_fingerprint_is_of_the_content_and_its_order(tmp_path: Path):
    base = [make([1, 2, 3]), make([4, 5])]
    fingerprint = write(tmp_path / "base", base).fingerprint
    assert len(fingerprint) == 64
    elsewhere = [make([1, 2, 3], line=9, path="other"), make([4, 5])]
    assert write(tmp_path / "same", elsewhere).fingerprint == fingerprint
    changed = {
        "order": [base[1], base[0]],
        "boundary": [make([1, 2]), make([3, 4, 5])],
        "token": [make([1, 2, 7]), base[1]],
        "weight": [make([1, 2, 3], 2), base[1]],
        "fewer": base[:1],
        "prompt": [
            Document(base[0].token_ids, base[0].loss_weights, 1, base[0].origin),
            base[1],
        ],
    }
    others = {name: write(tmp_path / name, documents).fingerprint for name, documents in changed.items()}
    assert len({fingerprint, *others.values()}) == 1 + len(changed)


def test_documents_are_addressed_from_0_to_the_last(tmp_path: Path):
    store = write(tmp_path, [make([1, 2]), make([3, 4])])
    for index in (-1, 2):
        with pytest.raises(IndexError) as caught:
            store.document(index)
        assert str(caught.value) == f"document {index} of 2"


def test_nothing_that_is_read_can_be_written(tmp_path: Path):
    store = write(tmp_path, [make([1, 2])])
    for array in (store.token_ids, store.lengths, store.document(0).loss_weights):
        with pytest.raises(ValueError):
            array[0] = 9


def test_a_store_needs_a_document_and_documents_need_to_be_whole(tmp_path: Path):
    with pytest.raises(AssertionError):
        write(tmp_path, [])
    trained_first = make([1], 1)
    too_few_weights = Document(np.arange(3, dtype=np.int32), np.zeros(2, np.float32), 0, Origin("a", 1))
    for broken in (trained_first, too_few_weights):
        with pytest.raises(AssertionError):
            write(tmp_path, [broken])


def edit(folder: Path, **changes: object) -> None:
    header = json.loads((folder / "store.json").read_text())
    (folder / "store.json").write_text(json.dumps(header | changes))


def swap_offsets(folder: Path) -> None:
    documents = np.load(folder / "documents.npy")
    documents["offset"] = documents["offset"][::-1]
    np.save(folder / "documents.npy", documents)


@pytest.mark.parametrize(
    ("damage", "fact"),
    [
        (lambda f: (f / "store.json").unlink(), "store.json is missing"),
        (lambda f: (f / "store.json").write_text("{"), "store.json is unreadable"),
        (lambda f: (f / "store.json").write_text("[1]"), "store.json is unreadable"),
        (lambda f: edit(f, fingerprint=1), "store.json is unreadable"),
        (lambda f: edit(f, num_tokens=True), "store.json is unreadable"),
        (lambda f: edit(f, num_documents=0), "store.json is unreadable"),
        (lambda f: edit(f, sources=[1]), "store.json is unreadable"),
        (lambda f: edit(f, format_version=99), "written in format 99, this version reads 1"),
        (lambda f: (f / "token_ids.bin").unlink(), "token_ids.bin is missing"),
        (lambda f: (f / "token_ids.bin").write_bytes(b"1234"), "token_ids.bin has 4 bytes instead of 20"),
        (lambda f: (f / "loss_weights.bin").write_bytes(b""), "loss_weights.bin has 0 bytes instead of 20"),
        (lambda f: (f / "documents.npy").unlink(), "documents.npy is missing"),
        (lambda f: (f / "documents.npy").write_bytes(b"\x80\x04."), "documents.npy is unreadable"),
        (lambda f: np.save(f / "documents.npy", np.zeros(2)), "documents.npy does not fit store.json"),
        (
            lambda f: (f / "documents.npy").open("ab").write(b"x") and None,
            "documents.npy has 337 bytes instead of 336",
        ),
        (swap_offsets, "the counts in documents.npy do not add up"),
        (lambda f: edit(f, num_targets=5), "the counts in documents.npy do not add up"),
    ],
)
def test_each_kind_of_damage_is_told(tmp_path: Path, damage, fact: str):
    write(tmp_path, [make([1, 2, 3]), make([4, 5])])
    damage(tmp_path)
    with pytest.raises(DataError) as caught:
        open_store(tmp_path)
    assert str(caught.value) == f"{tmp_path}: not a sound store: {fact}; remove the folder and prepare again"


def test_a_pickle_is_never_loaded(tmp_path: Path):
    write(tmp_path, [make([1, 2])])
    np.save(tmp_path / "documents.npy", np.array([{"code": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError):
        open_store(tmp_path)


def test_writing_takes_no_more_memory_for_more_documents(tmp_path: Path):
    document = make(list(range(1000)))
    tracemalloc.start()
    write(tmp_path, [document] * 5_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * 1024 * 1024 < (tmp_path / "token_ids.bin").stat().st_size
