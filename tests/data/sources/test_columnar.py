"""Every row of a Parquet or Arrow file becomes a record of JSON values, or is refused; damage is told."""

import datetime
import decimal
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetooth.base.errors import DataError
from finetooth.data.records import Record
from finetooth.data.sources import lines
from finetooth.data.sources.reading import read_records

pa = pytest.importorskip("pyarrow", reason="needs the extra parquet")
pytest.importorskip("pyarrow.parquet")


def write_parquet(path: Path, batch: Any, **options: Any) -> str:
    pa.parquet.write_table(pa.Table.from_batches([batch]), path, **options)
    return str(path)


def write_arrow(path: Path, *batches: Any, new: Callable[..., Any] | None = None) -> str:
    with pa.OSFile(str(path), "wb") as file, (new or pa.ipc.new_stream)(file, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return str(path)


def write_every_way(folder: Path, batch: Any) -> list[str]:
    """One batch as Parquet, as an Arrow stream (what `datasets` saves) and as an Arrow file (Feather)."""
    return [
        write_parquet(folder / "a.parquet", batch),
        write_arrow(folder / "stream.arrow", batch),
        write_arrow(folder / "a.feather", batch, new=pa.ipc.new_file),
    ]


def what(path: str) -> list[tuple[int, Any]]:
    return [(e.origin.line, e.fields if isinstance(e, Record) else e.fact) for e in read_records(path)]


def refusal(path: str) -> str:
    with pytest.raises(DataError) as caught:
        list(read_records(path))
    return str(caught.value).removeprefix(f"{path}: ")


MESSAGES = [
    [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4 \U0001f600"}],
    [],
    None,
]


def test_each_row_becomes_a_record_of_json_values(tmp_path: Path):
    batch = pa.record_batch(
        {"messages": MESSAGES, "score": [1.5, None, -2.0], "n": [1, 2**40, None], "ok": [True, None, False]}
    )
    for path in write_every_way(tmp_path, batch):
        assert what(path) == [
            (1, {"messages": MESSAGES[0], "score": 1.5, "n": 1, "ok": True}),
            (2, {"messages": [], "score": None, "n": 2**40, "ok": None}),
            (3, {"messages": None, "score": -2.0, "n": None, "ok": False}),
        ]


def test_rows_are_counted_through_all_batches(tmp_path: Path):
    batches = [pa.record_batch({"n": list(range(first, first + 300))}) for first in (0, 300, 600)]
    table = pa.Table.from_batches(batches)
    pa.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=70)
    paths = [
        str(tmp_path / "a.parquet"),
        write_arrow(tmp_path / "a.arrow", *batches),
        write_arrow(tmp_path / "a.feather", *batches, new=pa.ipc.new_file),
    ]
    for path in paths:
        assert what(path) == [(number + 1, {"n": number}) for number in range(900)]


def test_dates_times_and_decimals_become_text_also_within(tmp_path: Path):
    moment = datetime.datetime(2024, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    batch = pa.record_batch(
        {
            "made": pa.array([moment], pa.timestamp("s", "UTC")),
            "exact": pa.array([1], pa.timestamp("ns")),
            "day": pa.array([moment.date()]),
            "at": pa.array([datetime.time(3, 4)], pa.time32("s")),
            "inner": pa.array([[{"price": decimal.Decimal("1.50")}]]),
        }
    )
    for path in write_every_way(tmp_path, batch):
        is_parquet = path.endswith(".parquet")  # which has no seconds, only milliseconds
        assert what(path) == [
            (
                1,
                {
                    "made": "2024-01-02 03:04:05.000Z" if is_parquet else "2024-01-02 03:04:05Z",
                    "exact": "1970-01-01 00:00:00.000000001",
                    "day": "2024-01-02",
                    "at": "03:04:00.000" if is_parquet else "03:04:00",
                    "inner": [{"price": "1.50"}],
                },
            )
        ]


def test_kinds_of_text_lists_and_maps_that_arrow_has_are_plain(tmp_path: Path):
    batch = pa.record_batch(
        {
            "view": pa.array(["a"], pa.string_view()),
            "large": pa.array([["b"]], pa.large_list(pa.large_string())),
            "repeated": pa.array(["c"]).dictionary_encode(),
            "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
            "none": pa.array([[]], pa.map_(pa.string(), pa.int64())),
            "fixed": pa.array([[1, 2]], pa.list_(pa.int8(), 2)),
            "half": pa.array([0.5], pa.float16()),
        }
    )
    for path in write_every_way(tmp_path, batch):
        assert what(path) == [
            (
                1,
                {
                    "view": "a",
                    "large": ["b"],
                    "repeated": "c",
                    "map": {"k": 1},
                    "none": {},
                    "fixed": [1, 2],
                    "half": 0.5,
                },
            )
        ]


@pytest.mark.parametrize(
    ("values", "type", "fact"),
    [
        ([float("nan")], "float64", "nan in column 'x'"),
        ([float("-inf")], "float32", "-inf in column 'x'"),
        ([[{"y": float("inf")}]], None, "inf in column 'x'"),
        ([b"\x89PNG"], None, "binary data in column 'x'"),
        ([{"bytes": b"\x89PNG", "path": None}], None, "binary data in column 'x'"),
        ([datetime.timedelta(1)], None, "a value of type timedelta in column 'x'"),
        ([[(1, "a")]], "map", "a map in column 'x' whose keys are not texts"),
    ],
)
def test_a_row_with_what_json_lacks_is_bad_and_the_next_one_read(
    tmp_path: Path, values: list[Any], type: str | None, fact: str
):
    arrow_type = pa.map_(pa.int64(), pa.string()) if type == "map" else type
    batch = pa.record_batch({"x": pa.array([*values, None], arrow_type), "n": [1, 2]})
    for path in write_every_way(tmp_path, batch):
        assert what(path) == [(1, fact), (2, {"x": None, "n": 2})]


def test_a_row_that_is_too_long_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lines, "MAX_ENTRY_BYTES", 100)
    batch = pa.record_batch({"x": ["a", "b" * 200, "c"]})
    for path in write_every_way(tmp_path, batch):
        assert what(path) == [(1, {"x": "a"}), (2, "longer than 100 bytes"), (3, {"x": "c"})]


def test_json_in_a_text_stays_text_however_deep(tmp_path: Path):
    for path in write_every_way(tmp_path, pa.record_batch({"x": ["[" * 100_000]})):
        assert what(path) == [(1, {"x": "[" * 100_000})]


def test_columns_that_cannot_be_told_apart_are_refused(tmp_path: Path):
    batch = pa.RecordBatch.from_arrays([pa.array([1])] * 3, names=["a", "b", "a"])
    for path in write_every_way(tmp_path, batch):
        assert refusal(path) == "several columns are named 'a'; rename or remove all but one"
    inner = pa.StructArray.from_arrays([pa.array([1])] * 2, names=["a", "a"])
    path = write_arrow(tmp_path / "b.arrow", pa.record_batch({"x": inner}))
    assert "duplicate field names" in refusal(path)


def test_a_file_without_rows_or_columns_is_told(tmp_path: Path):
    for path in write_every_way(tmp_path, pa.record_batch({"x": pa.array([], pa.string())})):
        assert refusal(path) == "holds no record; check that this is the right file"
    path = write_arrow(tmp_path / "b.arrow", pa.RecordBatch.from_struct_array(pa.array([{}])))
    assert refusal(path) == "has no columns; check that this is the right file"


def test_a_file_of_another_kind_is_told(tmp_path: Path):
    for name in ("a.parquet", "a.arrow", "a.feather"):
        (tmp_path / name).write_text('{"prompt": "2+2?", "response": "4"}\n' * 20)
        assert refusal(str(tmp_path / name)).startswith("damaged, or of another kind than its name says (")
        (tmp_path / name).write_bytes(b"")
        assert refusal(str(tmp_path / name)).startswith("damaged, or of another kind than its name says (")


def test_a_stream_that_is_cut_off_or_goes_on_is_told(tmp_path: Path):
    """pyarrow's own reader is content with both, and gives a part of the rows."""
    batches = [pa.record_batch({"n": pa.array([number, -1, 0], "int32")}) for number in range(3)]
    whole = Path(write_arrow(tmp_path / "a.arrow", *batches)).read_bytes()
    cut = tmp_path / "cut.arrow"
    for size in range(len(whole)):
        cut.write_bytes(whole[:size])
        assert refusal(str(cut)).endswith("; write or copy it again")
    cut.write_bytes(whole[:-8])
    assert refusal(str(cut)) == "the mark that ends an Arrow stream is missing; write or copy it again"
    cut.write_bytes(whole + whole)
    assert refusal(str(cut)) == "data behind the end of the Arrow stream; keep one stream per file"
    cut.write_bytes(whole)
    assert len(what(str(cut))) == 9


def test_text_that_is_not_utf8_is_told(tmp_path: Path):
    offsets = pa.array([0, 2], pa.int32()).buffers()[1]
    text = pa.StringArray.from_buffers(1, offsets, pa.py_buffer(b"\xff\xfe"))
    path = write_arrow(tmp_path / "a.arrow", pa.record_batch({"x": text}))
    assert "UTF8" in refusal(path)


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_parquet(tmp_path / "a.parquet", pa.record_batch({"x": [1]}))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError) as caught:
        read_records(path)
    assert str(caught.value) == (
        f"{path}: needs pyarrow, which is not installed; pip install 'finetooth[parquet]'"
    )


def test_reading_json_does_not_load_pyarrow(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}')
    code = (
        "import sys; from finetooth.data.sources.reading import read_records; "
        "print(len(list(read_records(sys.argv[1]))), 'pyarrow' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.jsonl")]
    assert subprocess.check_output(command, text=True) == "1 False\n"


FUZZ = """
import pathlib, random, sys
from finetooth.base.errors import DataError
from finetooth.data.sources.reading import read_records
path, seed, num_tries = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
whole, rng = path.read_bytes(), random.Random(seed)
broken = path.with_name("broken" + path.suffix)
num_refused = 0
for number in range(num_tries):
    data = bytearray(whole)
    for _ in range(rng.choice([1, 1, 2, 8])):
        data[rng.randrange(len(data))] = rng.randrange(256)
    if rng.random() < 0.2:
        del data[rng.randrange(len(data)):]
    broken.write_bytes(data)
    print(number, file=sys.stderr, flush=True)
    try:
        for count, entry in enumerate(read_records(broken)):
            if count > 100_000:
                break
    except DataError:
        num_refused += 1
print(num_refused)
"""


@pytest.mark.parametrize("compression", ["none", "snappy"])
def test_damaged_files_give_records_or_a_data_error(tmp_path: Path, compression: str):
    """In a process of its own, which a crash of pyarrow would end."""
    rng = random.Random(3)
    batch = pa.record_batch(
        {
            "messages": [[{"role": "user", "content": "x" * rng.randrange(9)}] * 2 for _ in range(40)],
            "source": pa.array([rng.choice(["a", "b"]) for _ in range(40)]).dictionary_encode(),
            "score": [rng.random() for _ in range(40)],
        }
    )
    path, stream, feather = write_every_way(tmp_path, batch)
    write_parquet(Path(path), batch, compression=compression)
    for broken in (path, stream, feather):
        command = [sys.executable, "-c", FUZZ, broken, "1", "300"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (broken, done.stderr[-2000:])
        assert int(done.stdout) > 60


@pytest.mark.slow
def test_memory_stays_flat_over_many_rows(tmp_path: Path):
    from tests.data.sources.test_reading import peak_growth

    row = pa.array(["x" * 1000] * 10_000)
    batch = pa.record_batch({"x": row})
    schema = batch.schema
    parquet = tmp_path / "a.parquet"
    with pa.parquet.ParquetWriter(parquet, schema, use_dictionary=False, compression="none") as writer:
        for _ in range(20):
            writer.write_batch(batch, row_group_size=200_000)
    stream = write_arrow(tmp_path / "a.arrow", *[batch.slice(0, 1000)] * 200)
    for path in (str(parquet), stream):
        assert Path(path).stat().st_size > 190 * 1024**2
        entries, growth = peak_growth(path)
        assert entries == "['Record', 'Record', 'Record']"
        assert growth < 150  # pyarrow itself takes about 60
