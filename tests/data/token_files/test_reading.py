"""Token files of other systems give their documents, or a sentence that says what is wrong with them."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.chat import tiny_tokenizer
from tests.conftest import ROOT
from tests.data.token_files.test_boundaries import ASKED, HEADERS, RULED, TWICE, chatml_template, template_of
from tests.token_files import (
    Encoded,
    chatml,
    contents,
    joined,
    read,
    words,
    write_bin,
    write_hdf5,
    write_shard,
)

from finetooth.base.errors import DataError
from finetooth.data.records import GivenTokens
from finetooth.data.sources.reading import BadLine
from finetooth.data.token_files import reading as pretokenised
from finetooth.data.token_files.reading import is_token_file

CHATML = chatml_template()
DOCUMENTS = [chatml(CHATML, *turns) for turns in (ASKED, TWICE, RULED, ASKED)]
PADDING = CHATML.tokenizer.control_tokens["</tool_call>"]  # a control token that ends no turn


def refusal(path: Path, **options: Any) -> list[str]:
    with pytest.raises(DataError) as error:
        read(path, CHATML, **options)
    return [text.replace(str(path.parent), ".") for text in error.value.problems]


def as_read(documents: list[Encoded]) -> list[Any]:
    return [tuple(document) for document in documents]


def test_a_pair_of_files_gives_its_documents(tmp_path: Path):
    path = write_bin(tmp_path / "train.bin", *joined(DOCUMENTS), num_examples=4)
    entries = read(path, CHATML)
    assert contents(entries) == as_read(DOCUMENTS)
    assert [str(entry.origin) for entry in entries] == [f"{path}:{number}" for number in (1, 2, 3, 4)]
    first = entries[0]
    assert isinstance(first, GivenTokens)
    assert (first.token_ids.dtype, first.loss_weights.dtype) == (np.int32, np.float32)


def test_chunks_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pretokenised, "_CHUNK_TOKENS", 5)
    path = write_bin(tmp_path / "val.bin", *joined(DOCUMENTS))
    assert contents(read(path, CHATML)) == as_read(DOCUMENTS)


def test_nothing_predicts_the_first_token(tmp_path: Path):
    ids, _ = joined(DOCUMENTS[:1])
    (entry,) = read(write_bin(tmp_path / "train.bin", ids, np.ones_like(ids)), CHATML)
    assert isinstance(entry, GivenTokens)
    assert entry.loss_weights.tolist() == [0] + [1] * (len(ids) - 1)


def test_what_is_not_whole_is_listed(tmp_path: Path):
    ids, mask = joined(DOCUMENTS)
    path = write_bin(tmp_path / "train.bin", ids[3:-2], mask[3:-2])
    missing = len(DOCUMENTS[0][0]) - 3
    assert contents(read(path, CHATML)) == [
        f"{missing} tokens whose beginning is missing",
        *as_read(DOCUMENTS[1:3]),
        "its end is missing: the file ends without an end token",
    ]


def test_foreign_tokens_and_labels_are_listed(tmp_path: Path):
    ids, mask = joined(DOCUMENTS)
    ends = np.cumsum([len(document[0]) for document in DOCUMENTS])
    path = write_bin(tmp_path / "train.bin", ids, mask)
    ids[ends[0] + 6], ids[ends[2] - 3] = 99_999, -7
    ids.tofile(path)
    labels = np.fromfile(tmp_path / "train_labels.bin", np.int32)
    labels[5] += 1
    labels.tofile(tmp_path / "train_labels.bin")
    largest = CHATML.tokenizer.largest_id
    assert contents(read(path, CHATML)) == [
        "the label of its token 6 is neither the token nor -100",
        f"token 99999 is none of the tokenizer's, which end at {largest}",
        f"token -7 is none of the tokenizer's, which end at {largest}",
        as_read(DOCUMENTS)[3],
    ]


def test_pairs_that_do_not_fit_are_refused(tmp_path: Path):
    ids, mask = joined(DOCUMENTS)
    path, labels = tmp_path / "train.bin", tmp_path / "train_labels.bin"
    assert refusal(path) == [
        "./train.bin: no such file; check the path",
        "./train_labels.bin: no such file; put it there: it says what is trained",
    ]
    path.write_bytes(b"12345")
    labels.write_bytes(b"")
    assert refusal(path) == [
        "./train.bin: 5 bytes, which are no int32 numbers; write it anew, as int32 without header",
        "./train_labels.bin: 0 bytes, which are no int32 numbers; write it anew, as int32 without header",
    ]
    write_bin(path, ids, mask)
    ids[:10].tofile(labels)
    assert refusal(path) == [
        f"./train.bin: {len(ids)} tokens, but train_labels.bin has 10 labels; "
        "write both anew, one label per token"
    ]
    assert refusal(labels) == [
        "./train_labels.bin: holds labels, not tokens; name train.bin, its labels are found"
    ]
    shifted = np.append(np.where(mask != 0, ids, -100)[1:], -100)
    path = write_bin(path, ids, mask)
    shifted.astype("<i4").tofile(labels)
    assert refusal(path) == [
        "./train_labels.bin: each label names the token behind it; "
        "write labels that equal the tokens they stand on"
    ]


def test_the_count_of_meta_json_is_held_against_the_documents(tmp_path: Path):
    path = write_bin(tmp_path / "train.bin", *joined(DOCUMENTS), num_examples=5)
    assert refusal(path) == [
        "./train.bin: 4 documents were found, but meta.json counts 5; "
        "write it as .jsonl with input_ids and labels, or correct meta.json"
    ]
    for content in ("[]", "{", '{"train": 3}', '{"val": {"num_examples": 9}}', "[" * 10**5):
        (tmp_path / "meta.json").write_text(content)
        assert len(read(path, CHATML)) == 4


def test_a_template_that_opens_nothing_is_refused(tmp_path: Path):
    path = write_bin(tmp_path / "train.bin", *joined(DOCUMENTS))
    bare = template_of("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}")
    with pytest.raises(DataError, match="an end token closes turns, not documents"):
        read(path, bare)


def test_which_paths_are_token_files(tmp_path: Path):
    assert [
        name for name in ("a.bin", "a.h5", "a.HDF5", "a.pth", "a.jsonl", "bin") if is_token_file(name)
    ] == [*("a.bin", "a.h5", "a.HDF5", "a.pth")]
    assert not is_token_file(tmp_path)
    write_shard(tmp_path / "007.pth", [([1], [1])])
    assert is_token_file(tmp_path)


@pytest.mark.parametrize("row", [1, 2, 5, 8, 30])
@pytest.mark.parametrize("options", [{}, {"compression": "gzip", "shuffle": True}, {"compression": "lzf"}])
def test_rows_that_cut_documents_are_joined(tmp_path: Path, row: int, options: dict[str, Any]):
    ids, mask = joined(DOCUMENTS * row)
    path = write_hdf5(tmp_path / "sft_packed.h5", ids, mask, row=row, **options)
    assert contents(read(path, CHATML)) == as_read(DOCUMENTS * row)


def padded(rows: list[list[Encoded]], row: int, filler: int) -> tuple[np.ndarray, np.ndarray]:
    """Every row filled up to its length."""
    lines = [joined(documents) for documents in rows]
    ids = [np.concatenate([ids, np.full(row - len(ids), filler)]) for ids, _ in lines]
    masks = [np.concatenate([mask, np.zeros(row - len(mask), np.int32)]) for _, mask in lines]
    return np.concatenate(ids), np.concatenate(masks)


@pytest.mark.parametrize("filler", [0, PADDING, CHATML.tokenizer.eos_token_id])
def test_padding_is_left_out(tmp_path: Path, filler: int):
    template = padding_template()
    rows = [
        DOCUMENTS[:2],
        DOCUMENTS[2:3],
        [],
        DOCUMENTS[3:],
        [chatml(CHATML, *RULED, end="\n")],
        DOCUMENTS[:1],
    ]
    ids, mask = padded(rows, 140, filler)
    path = write_hdf5(tmp_path / "a.h5", ids, mask, row=140)
    assert contents(read(path, template)) == as_read([document for row in rows for document in row])


def padding_template():
    from finetooth.data.templates.template import resolve_template
    from finetooth.data.tokenizer.files import TokenizerFiles
    from finetooth.data.tokenizer.tokenizer import Tokenizer

    tokenizer = tiny_tokenizer()
    special = {**tokenizer.special_tokens, "pad_token": "</tool_call>"}
    return resolve_template(
        "chatml", Tokenizer(TokenizerFiles(json.loads(tokenizer.definition), special, None))
    )


def test_of_end_tokens_the_first_stays_where_it_may_end_a_turn(tmp_path: Path):
    template = template_of(HEADERS)
    end = template.tokenizer.eos_token_id or 0
    asking = words(template, *RULED, ("user", "And?"))  # its last end token is not trained
    answered = words(template, *RULED)
    rows = [[asking], [answered], [asking], [answered]]
    path = write_hdf5(tmp_path / "a.h5", *padded(rows, 90, end), row=90)
    assert contents(read(path, template)) == as_read([asking, answered, asking, answered])


def test_what_may_be_content_stays(tmp_path: Path):
    zeros = chatml(CHATML, ("user", "!!!"), ASKED[1])
    assert zeros[0][:8].count(0) >= 2, "0 is an exclamation mark here"
    place = zeros[0].index(0) + 2
    ids, mask = joined([zeros] * place)
    row = place
    path = write_hdf5(tmp_path / "a.h5", ids[: len(ids) // row * row], mask, row=row)
    assert contents(read(path, CHATML)) == as_read([zeros] * place)


def test_what_a_conversation_goes_on_behind_stays(tmp_path: Path):
    template = template_of(HEADERS)
    end = template.tokenizer.eos_token_id or 0
    asked, answered = (
        words(template, *RULED[:2]),
        words(template, ("assistant", "It is 3, it is 3, it is 3.")),
    )
    doubled = ([*asked[0], end, *answered[0]], [*asked[1], 0, *answered[1]])
    row = len(asked[0]) + 1  # ends with two end tokens, and the next one goes on with the answer
    ids, mask = joined([doubled])
    assert len(ids) <= 2 * row
    fill = np.zeros(2 * row - len(ids), np.int32)
    ids, mask = np.concatenate([ids, fill + end]), np.concatenate([mask, fill])
    path = write_hdf5(tmp_path / "a.h5", ids, mask, row=row)
    assert contents(read(path, template)) == as_read([doubled])


def test_padding_before_a_row_that_opens_nothing_glues_nothing(tmp_path: Path):
    template = padding_template()
    tail = (DOCUMENTS[1][0][5:], DOCUMENTS[1][1][5:])
    path = write_hdf5(
        tmp_path / "a.h5", *padded([DOCUMENTS[:1], [tail], DOCUMENTS[2:3]], 90, PADDING), row=90
    )
    assert contents(read(path, template)) == [
        as_read(DOCUMENTS)[0],
        f"{len(tail[0])} tokens whose beginning is missing",
        as_read(DOCUMENTS)[2],
    ]


def test_single_turns_under_headers_need_the_declaration(tmp_path: Path):
    template = template_of(HEADERS)
    documents = [words(template, *ASKED)] * 8
    path = write_hdf5(tmp_path / "a.h5", *joined(documents), row=8)
    assert contents(read(path, template, single_turn=True)) == as_read(documents)
    with pytest.raises(DataError, match=r"data\.single_turn: true"):
        read(path, template)


def test_a_question_behind_padding_is_not_glued_to_what_stands_before_it(tmp_path: Path):
    template = template_of(HEADERS)
    rows = [[words(template, *RULED)], [words(template, *ASKED)]]
    path = write_hdf5(tmp_path / "a.h5", *padded(rows, 90, template.tokenizer.eos_token_id or 0), row=90)
    with pytest.raises(DataError, match="it begins with a question"):
        read(path, template)
    assert contents(read(path, template, single_turn=True)) == as_read([rows[0][0], rows[1][0]])


def test_hdf5_that_leads_elsewhere_is_refused(tmp_path: Path):
    import h5py

    ids, mask = joined(DOCUMENTS * 8)
    whole = write_hdf5(tmp_path / "whole.h5", ids, mask)
    num_rows = len(ids) // 8
    path = tmp_path / "a.h5"
    layout = h5py.VirtualLayout((num_rows, 8), "<i4")
    layout[:] = h5py.VirtualSource(str(whole), "tokens", (num_rows, 8))

    def written(make: Any) -> Path:
        with h5py.File(path, "w") as file:
            make(file)
            if "loss_mask" not in file:
                file["loss_mask"] = np.zeros((num_rows, 8), np.int8)
        return path

    def external(file: Any) -> None:
        file["tokens"] = h5py.ExternalLink(str(whole), "tokens")

    def soft(file: Any) -> None:
        file["tokens"] = h5py.SoftLink("/loss_mask")

    def stored_outside(file: Any) -> None:
        file.create_dataset("tokens", (num_rows, 8), "<i4", external=[(str(whole), 0, num_rows * 32)])

    def huge(file: Any) -> None:
        for name in ("tokens", "loss_mask"):
            file.create_dataset(name, (2**40, 1024), "<i4", chunks=(1, 1024))

    def bomb(file: Any) -> None:
        for name in ("tokens", "loss_mask"):
            file.create_dataset(name, (2**22, 1024), "<i4", chunks=(2**20, 1024), compression="gzip")

    def scaled(file: Any) -> None:
        file.create_dataset("tokens", (num_rows, 8), "<i4", chunks=(1, 8), scaleoffset=3)

    cases = {
        external: "'tokens' is a link; copy what it leads to into the file",
        soft: "'tokens' is a link; copy what it leads to into the file",
        lambda f: f.create_virtual_dataset("tokens", layout): (
            "'tokens' is put together from other files; write it anew, plain or with gzip"
        ),
        stored_outside: "'tokens' lies in other files; write it anew, plain or with gzip",
        huge: (
            "'tokens' declares 1,099,511,627,776 × 1,024 numbers, but stores 0 bytes; "
            "write it anew, plain or with gzip"
        ),
        bomb: "'tokens' is packed in chunks of 1,073,741,824 numbers; write it anew, plain or with gzip",
        scaled: "'tokens' is packed with filter 6, a program of its own; write it anew, plain or with gzip",
        lambda f: f.create_group("tokens"): "'tokens' is a group; write tokens and loss_mask as datasets",
        lambda f: f.create_dataset("tokens", data=np.zeros((2, 8))): (
            "'tokens' holds float64 instead of integers; write it anew, plain or with gzip"
        ),
        lambda f: f.create_dataset("tokens", data=np.zeros(8, "<i4")): (
            "'tokens' has the shape (8,) instead of (rows, tokens); write it anew, plain or with gzip"
        ),
        lambda f: f.create_dataset("tokens", data=np.zeros((2, 8), "<i4")): (
            f"tokens have the shape (2, 8), loss_mask has ({num_rows}, 8); "
            "write both anew, one mask per token"
        ),
        lambda f: None: "holds no 'tokens'; write tokens and loss_mask",
    }
    for make, expected in cases.items():
        assert refusal(written(make)) == [f"./a.h5: {expected}"]
    path.write_bytes(whole.read_bytes()[:3000])
    assert refusal(path) == ["./a.h5: not an HDF5 file, or damaged; copy it again or write it anew"]
    assert refusal(tmp_path / "none.h5") == ["./none.h5: no such file; check the path"]


def test_masks_other_than_0_and_1_are_refused(tmp_path: Path):
    ids, mask = joined(DOCUMENTS * 8)
    mask[8 * 3 + 2] = 2
    path = write_hdf5(tmp_path / "a.h5", ids, mask)
    assert refusal(path) == ["./a.h5: loss_mask is 2 in row 4; write 1 where a token is trained, else 0"]


def test_hdf5_without_its_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from finetooth.base.errors import ConfigError

    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(ConfigError) as error:
        read(tmp_path / "a.h5", CHATML)
    assert error.value.problems == [
        f"{tmp_path / 'a.h5'}: HDF5 files need h5py; pip install 'finetooth[hdf5]'"
    ]


DIALOGUES = [([11, 12, 13, 14, 15], [14, 15]), ([21, 22, 23], [23]), ([31, 32, 33, 34], [32, 33, 34])]
FOLLOWING = [(x[:-1], y) for x, y in DIALOGUES]


@pytest.mark.parametrize("pairs", [DIALOGUES, FOLLOWING])
@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.int64])
def test_shards_give_dialogues(tmp_path: Path, pairs: Any, dtype: torch.dtype):
    write_shard(tmp_path / "000.pth", pairs[:2], dtype=dtype)
    write_shard(tmp_path / "001.pth", pairs, dtype=dtype)
    expected = [([11, 12, 13, 14, 15], [0, 0, 0, 1, 1]), ([21, 22, 23], [0, 0, 1])]
    entries = read(tmp_path, CHATML)
    assert contents(entries) == [*expected, *expected, ([31, 32, 33, 34], [0, 1, 1, 1])]
    assert str(entries[2].origin) == f"{tmp_path / '001.pth'}:1"
    assert contents(read(tmp_path / "000.pth", CHATML)) == expected


def test_dialogues_that_do_not_fit_are_listed(tmp_path: Path):
    pairs = [*DIALOGUES, ([11, 12, 13], [9]), ([], [5]), ([7], [6, 7]), ([7], []), ([7, 60_000], [60_000])]
    path = write_shard(tmp_path / "000.pth", pairs)
    wrong = "its targets are not the end of its input"
    foreign = f"token 60000 is none of the tokenizer's, which end at {CHATML.tokenizer.largest_id}"
    entries = read(path, CHATML)
    assert contents(entries)[3:] == [wrong, "its input is empty", wrong, ([7], [0]), foreign]
    assert isinstance(entries[3], BadLine)
    assert entries[3].origin.line == 4


def test_shards_that_are_none_are_refused(tmp_path: Path):
    path = tmp_path / "000.pth"
    form = 'a shard holds {"sequences": …, "offsets": …}'
    sequences = torch.arange(4, dtype=torch.int32)
    cases: list[tuple[Any, str]] = [
        ([sequences], f"not a dict; {form}"),
        ({"sequences": sequences}, f"'offsets' is no row of integers in it; {form}"),
        (
            {"sequences": sequences * 1.5, "offsets": sequences},
            f"'sequences' is no row of integers in it; {form}",
        ),
        (
            {"sequences": sequences, "offsets": sequences[:3]},
            "'offsets' are no pairs of lengths; write the shard anew",
        ),
        (
            {"sequences": sequences, "offsets": -sequences},
            "'offsets' are no pairs of lengths; write the shard anew",
        ),
        (
            {"sequences": sequences, "offsets": torch.tensor([2, 1])},
            "'offsets' do not add up to the 4 tokens of 'sequences'; write the shard anew",
        ),
        (
            {"sequences": sequences, "offsets": torch.tensor([2**62, 2**62, 2**62, 2**62 + 4])},
            "'offsets' do not add up to the 4 tokens of 'sequences'; write the shard anew",
        ),
    ]
    for value, expected in cases:
        torch.save(value, path)
        assert refusal(path) == [f"./000.pth: {expected}"]


def test_gaps_among_shards_are_named(tmp_path: Path):
    folder = tmp_path / "train_dataset"
    for number in (1, 3, 6):
        write_shard(folder / f"{number:03}.pth", DIALOGUES)
    write_shard(folder / "best.pth", DIALOGUES)
    assert refusal(folder) == [
        "./train_dataset: best.pth among the shards, whose names are numbers; move it elsewhere",
        "./train_dataset: 000.pth, 002.pth, 004.pth, 005.pth are missing among the shards; "
        "put every shard there, or name single ones as sources",
    ]
    absurd = tmp_path / "absurd"
    write_shard(absurd / "000.pth", DIALOGUES)
    write_shard(absurd / "999999999999999.pth", DIALOGUES)
    assert refusal(absurd)[0].startswith("./absurd: 001.pth, 002.pth, 003.pth, 004.pth, 005.pth are missing")
    write_shard(tmp_path / "twice" / "000.pth", DIALOGUES)
    write_shard(tmp_path / "twice" / "0.pth", DIALOGUES)
    assert refusal(tmp_path / "twice") == ["./twice: two shards have the same number; remove one of them"]


_FUZZ = """
import sys
from pathlib import Path
import numpy as np
from tests.data.token_files.test_boundaries import chatml_template
from tests.token_files import read
from finetooth.base.errors import DataError

whole, path, seed = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]), int(sys.argv[3])
template, draws, refused = chatml_template(), np.random.default_rng(seed), 0
for number in range(int(sys.argv[4])):
    content = bytearray(whole)
    for place in draws.integers(0, len(content) if number % 2 else 4096, draws.integers(1, 4)):
        content[place] = draws.integers(0, 256)
    path.write_bytes(content)
    try:
        read(path, template)
    except DataError:
        refused += 1
print(refused)
"""


@pytest.mark.parametrize("options", [{}, {"compression": "gzip"}])
def test_damaged_hdf5_is_documents_or_an_error(tmp_path: Path, options: dict[str, Any]):
    whole = write_hdf5(tmp_path / "whole.h5", *joined(DOCUMENTS * 8), **options)
    command = [sys.executable, "-c", _FUZZ, str(whole), str(tmp_path / "damaged.h5"), "1", "60"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0, "the control: some damage is noticed"


@settings(max_examples=100)
@given(st.binary(min_size=1, max_size=80), st.binary(max_size=80), st.booleans())
def test_any_bytes_in_a_pair_are_documents_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, tokens: bytes, labels: bytes, single_turn: bool
):
    path = tmp_path_factory.getbasetemp() / "any.bin"
    path.write_bytes(tokens)
    path.with_name("any_labels.bin").write_bytes(labels)
    with contextlib.suppress(DataError):
        read(path, CHATML, single_turn=single_turn)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=3))
def test_damaged_shards_are_dialogues_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[float, int]]
):
    path = write_shard(tmp_path_factory.getbasetemp() / "000.pth", DIALOGUES)
    content = bytearray(path.read_bytes())
    for place, byte in changes:
        content[round(place * (len(content) - 1))] = byte
    path.write_bytes(content)
    with contextlib.suppress(DataError):
        read(path, CHATML)
