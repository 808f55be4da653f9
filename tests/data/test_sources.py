import subprocess
import sys
import threading

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from ppl_vae.data import Block, Stream, from_frame, stream
from ppl_vae.errors import DataError

ROWS = np.random.default_rng(0).normal(size=(23, 3))


def fortran(path):
    np.save(path / "a.npy", np.asfortranarray(ROWS))
    return path / "a.npy"


def c_order(path):
    np.save(path / "a.npy", ROWS)
    return path / "a.npy"


def mapped(path):
    return np.load(c_order(path), mmap_mode="r")


def part_of_a_map(path):
    np.save(path / "a.npy", np.concatenate([ROWS, ROWS]))
    return np.load(path / "a.npy", mmap_mode="r")[len(ROWS) :]


def backwards_big_endian(path):
    np.save(path / "a.npy", ROWS.astype(">f8"))
    return str(path / "a.npy")


def frame():
    return pd.DataFrame(ROWS, columns=["x0", "x1", "x2"])


def parquet(path):
    pq.write_table(pa.Table.from_pandas(frame()), path / "a.parquet", row_group_size=4)
    return path / "a.parquet"


def csv(path):
    frame().to_csv(path / "a.csv", index=False)
    return path / "a.csv"


def folder(path):
    for i, start in enumerate(range(0, 23, 5)):
        frame()[start : start + 5].to_parquet(path / f"part-{i}.parquet")
    return path


def pattern(path):
    folder(path)
    return str(path / "part-*.parquet")


def listed(path):
    folder(path)
    return [path / f"part-{i}.parquet" for i in range(5)]


def arrays_listed(path):
    np.save(path / "a.npy", ROWS[:9])
    np.save(path / "b.npy", ROWS[9:])
    return [path / "a.npy", path / "b.npy"]


class Batches:
    """Restartable, in ragged batches of one buffer that is filled again and again."""

    def __iter__(self):
        buffer = np.empty((7, 3))
        for start in range(0, 23, 7):
            part = ROWS[start : start + 7]
            buffer[: len(part)] = part
            yield buffer[: len(part)]
        yield buffer[:0]


def generator_function(path):
    def batches():
        yield from (torch.from_numpy(ROWS[i : i + 2]) for i in range(0, 23, 2))

    return batches


SOURCES = {
    "npy": c_order,
    "npy, Fortran order": fortran,
    "npy, big endian": backwards_big_endian,
    "memory map": mapped,
    "part of a memory map": part_of_a_map,
    "parquet": parquet,
    "csv": csv,
    "folder": folder,
    "pattern": pattern,
    "list of parquet": listed,
    "list of npy": arrays_listed,
    "tensor": lambda path: torch.from_numpy(ROWS),
    "array": lambda path: ROWS,
    "reversed view": lambda path: ROWS[::-1].copy()[::-1],
    "table": lambda path: from_frame(frame()),
    "pandas": lambda path: frame(),
    "polars": lambda path: pl.from_pandas(frame()),
    "pyarrow": lambda path: pa.Table.from_pandas(frame()),
    "iterable": lambda path: Batches(),
    "list of arrays": lambda path: [ROWS[:4], ROWS[4:]],
    "generator function": generator_function,
    "frames": lambda path: lambda: iter([frame()[:20], frame()[20:]]),
    "data loader": lambda path: DataLoader(torch.from_numpy(ROWS), batch_size=6),
}


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("rows", [1, 4, 23, 100])
def test_every_source_gives_the_same_blocks_at_every_pass(tmp_path, kind, rows):
    source = stream(SOURCES[kind](tmp_path), rows=rows)
    assert isinstance(source, Stream)
    assert source.columns == ("x0", "x1", "x2")
    for _ in range(2):
        blocks = list(source)
        assert all(isinstance(block, Block) and block.weights is None for block in blocks)
        assert [block.start for block in blocks] == list(range(0, 23, rows))
        assert [len(block) for block in blocks] == [min(rows, 23 - start) for start in range(0, 23, rows)]
        values = torch.cat([block.values for block in blocks])
        assert values.dtype == torch.float64
        torch.testing.assert_close(values, torch.from_numpy(ROWS), rtol=0, atol=1e-15 if kind == "csv" else 0)
        assert source.num_rows == 23


@pytest.mark.parametrize("kind", SOURCES)
def test_columns_and_weights_are_taken_by_name(tmp_path, kind):
    weighted = {"x0": ROWS[:, 0], "x1": np.abs(ROWS[:, 1]), "x2": ROWS[:, 2]}
    before = ROWS[:, 1].copy()
    ROWS[:, 1] = weighted["x1"]
    try:
        path = SOURCES[kind](tmp_path)
        one = stream(path, columns=["x2", "x0"], weights="x1", rows=10)
        rest = stream(path, weights="x1", rows=10)
        assert one.columns == ("x2", "x0")
        assert rest.columns == ("x0", "x2")
        for source, names in ((one, ("x2", "x0")), (rest, ("x0", "x2"))):
            blocks = list(source)
            found = torch.cat([block.values for block in blocks])
            np.testing.assert_allclose(found, np.column_stack([weighted[name] for name in names]), rtol=1e-14)
            np.testing.assert_allclose(torch.cat([block.weights for block in blocks]), weighted["x1"], rtol=1e-14)
    finally:
        ROWS[:, 1] = before


@pytest.mark.parametrize("kind", SOURCES)
def test_shards_share_out_the_blocks(tmp_path, kind):
    source = stream(SOURCES[kind](tmp_path), rows=3)
    every = {block.start: block.values for block in source}
    for world in (1, 2, 3, 10):
        shards = [list(source.shard(rank, world)) for rank in range(world)]
        assert [[b.start // 3 % world == rank for b in shard] for rank, shard in enumerate(shards)] == [
            [True] * len(shard) for shard in shards
        ]
        found = {block.start: block.values for shard in shards for block in shard}
        assert found.keys() == every.keys()
        assert all(torch.equal(found[start], every[start]) for start in every)
    with pytest.raises(DataError, match="ranks are 0"):
        source.shard(2, 2)


def test_a_shard_of_a_file_reads_only_its_blocks(tmp_path, monkeypatch):
    read = []
    real = np.fromfile
    monkeypatch.setattr(np, "fromfile", lambda file, dtype, count: read.append(count) or real(file, dtype, count))
    source = stream(c_order(tmp_path), rows=5)
    read.clear()
    assert [block.start for block in source.shard(1, 4)] == [5]
    assert read == [15]


def test_a_shard_of_parquet_skips_row_groups(tmp_path, monkeypatch):
    groups = []
    real = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile,
        "iter_batches",
        lambda self, *args, **options: groups.append(options["row_groups"]) or real(self, *args, **options),
    )
    source = stream(parquet(tmp_path), rows=4)
    groups.clear()
    assert [block.start for block in source.shard(1, 3)] == [4, 16]
    assert groups == [[1], [4]]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(1, 12))
@settings(max_examples=50, deadline=None)
def test_blocks_do_not_depend_on_the_batches(sizes, rows):
    values = torch.arange(sum(sizes))
    if not len(values):
        with pytest.raises(DataError, match="no rows"):
            stream(lambda: iter(values.split(sizes)), rows=rows)
        return
    source = stream(lambda: iter(values.split(sizes)), rows=rows)
    assert [block.values.tolist() for block in source] == [part.tolist() for part in values.split(rows)]
    keys = np.random.default_rng(3).random(len(values))
    assert source.sample(5, seed=3).values.tolist() == sorted(np.argsort(keys)[:5])


DTYPES = {
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
    "int8": torch.int8,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint8": torch.uint8,
    "bool": torch.uint8,
    "uint16": torch.int32,
    "uint64": torch.float64,
}


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_are_kept(tmp_path, dtype):
    array = np.array([[0, 1], [1, 1]]).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    for source in (array, tmp_path / "a.npy", [array], torch.from_numpy(array) if dtype[:2] != "ui" else array):
        (block,) = stream(source)
        assert block.values.dtype == DTYPES[dtype]
        assert block.values.tolist() == [[0, 1], [1, 1]]


def test_weights_do_not_widen_the_features(tmp_path):
    table = pd.DataFrame({"a": np.float32([1, 2]), "b": np.float32([1, 2]), "w": [0.1, 0.2]})
    table.to_parquet(tmp_path / "a.parquet")
    for source in (table, tmp_path / "a.parquet", [table]):
        (block,) = stream(source, weights="w")
        assert block.values.dtype == torch.float32
        assert block.weights.dtype == torch.float64
        assert block.weights.tolist() == [0.1, 0.2]


def test_nulls_are_nan_in_every_block_of_every_file(tmp_path):
    pq.write_table(pa.table({"i": [1, 2, 3], "f": [1.0, None, 3.0]}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"i": [4, None], "f": [4.0, 5.0]}), tmp_path / "1.parquet")
    first, second = stream(tmp_path, rows=3)
    torch.testing.assert_close(first.values.T, torch.tensor([[1, 2, 3], [1, torch.nan, 3]]).double(), equal_nan=True)
    torch.testing.assert_close(second.values.T, torch.tensor([[4, torch.nan], [4, 5]]).double(), equal_nan=True)
    (whole,) = stream(tmp_path / "0.parquet", columns="i")
    assert whole.values.dtype == torch.int64
    (polars,) = stream(pl.DataFrame({"i": [1, None], "f": [1.0, 2.0]}))
    assert polars.values.isnan().tolist() == [[False, False], [True, False]]
    (tmp_path / "a.csv").write_text("a,b\n1,\n,NA\n")
    (cells,) = stream(tmp_path / "a.csv")
    assert cells.values.isnan().tolist() == [[False, True], [True, True]]
    (masked,) = stream(np.ma.masked_equal([[1, 9], [2, 3]], 9))
    assert masked.values.isnan().tolist() == [[False, True], [False, False]]


def test_mappings_are_data_of_several_nodes():
    nodes = {"x": torch.randn(5, 2), "label": np.arange(5), "w": np.ones(5, np.float32)}
    for source in (
        nodes,
        lambda: iter([nodes]),
        [{k: v[:2] for k, v in nodes.items()}, {k: v[2:] for k, v in nodes.items()}],
    ):
        blocks = list(stream(source, weights="w", rows=3))
        assert [sorted(block.values) for block in blocks] == [["label", "x"]] * 2
        torch.testing.assert_close(torch.cat([block.values["x"] for block in blocks]), nodes["x"])
        assert torch.cat([block.values["label"] for block in blocks]).tolist() == [0, 1, 2, 3, 4]
        assert torch.cat([block.weights for block in blocks]).tolist() == [1] * 5


@pytest.mark.parametrize("order", ["C", "F"])
def test_events_of_any_shape(tmp_path, order):
    images = np.arange(7 * 2 * 3, dtype=np.float32).reshape(7, 2, 3)
    np.save(tmp_path / "a.npy", np.asarray(images, order=order))
    blocks = list(stream(tmp_path / "a.npy", rows=4))
    np.testing.assert_array_equal(torch.cat([block.values for block in blocks]), images)
    np.save(tmp_path / "b.npy", images[:, 0, 0])
    source = stream(tmp_path / "b.npy")
    assert source.columns == ("x0",)
    assert next(iter(source)).values.shape == (7,)


# Passes that differ


class Changing:
    """Other batches at every pass; the last ones again and again."""

    def __init__(self, *passes):
        self.passes = list(passes)

    def __iter__(self):
        return iter(self.passes.pop(0) if len(self.passes) > 1 else self.passes[0])


X = torch.arange(20.0).reshape(10, 2)
OTHER = torch.cat([X[:4], X[4:].flip(0)])

CHANGES = {
    "fewer rows": (X[:7], "ends early: after 7 rows, and there were 10 before"),
    "fewer, at a block": (X[:6], "ends early: after 6 rows, and there were 10 before"),
    "no rows": (X[:0], "gives no rows any more"),
    "more rows": (torch.cat([X, X]), "goes on after row 10, its last row so far"),
    "more, within a block": (torch.cat([X, X[:1]]), "goes on after row 10"),
    "other rows": (OTHER, "rows 3 to 5 are not those of the first pass"),
    "other columns": (X[:, :1], "changes at row 0: columns .'x0'. where .'x0', 'x1'."),
    "other dtype": (X.double(), "changes at row 0: rows of shape .2. in float64 where .2. in float32"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_source_that_changes_between_passes_is_refused(case):
    other, message = CHANGES[case]
    source = stream(Changing([X], [X], [other]), rows=3)
    assert len(list(source)) == 4
    with pytest.raises(DataError, match=message):
        list(source)
    with pytest.raises(DataError, match=message if "rows 3" not in message else "."):
        list(source.shard(1, 2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.int64, torch.uint8])
def test_one_number_that_changes_inside_a_block_is_found_out(dtype):
    before = X.to(dtype)
    for value in (12, 0, *([torch.nan, -torch.inf, 11.01] if dtype.is_floating_point else [])):
        after = before.clone()
        after[5, 1] = value
        for layout in (torch.Tensor.contiguous, lambda x: x.T.contiguous().T, lambda x: {"a": x[:, 0], "b": x[:, 1]}):
            source = stream(Changing([layout(before)], [layout(before)], [layout(after)]), rows=10)
            list(source)
            with pytest.raises(DataError, match="rows 0 to 9 are not those of the first pass"):
                list(source)


def test_a_weight_that_changes_inside_a_block_is_found_out():
    after = X.clone()
    after[5, 1] = 1.0
    source = stream(Changing([X], [X], [after]), rows=10, weights="x1")
    list(source)
    with pytest.raises(DataError, match="rows 0 to 9 are not those"):
        list(source)


def test_a_change_within_a_pass_is_refused():
    with pytest.raises(DataError, match=r"changes at row 4: rows of shape .2. in float64"):
        list(stream([X[:4], X[4:].double()], rows=3))
    with pytest.raises(DataError, match=r"changes at row 4: columns \['b'\] where \['a'\]"):
        list(stream([pd.DataFrame({"a": range(4)}), pd.DataFrame({"b": range(4)})], rows=4))


def test_a_callable_that_returns_one_iterator_is_found_out():
    once = iter([X])
    with pytest.raises(DataError, match="gives no rows any more"):
        list(stream(lambda: once))


def test_shuffling_is_found_out():
    torch.manual_seed(0)
    source = stream(DataLoader(X, batch_size=3, shuffle=True), rows=5)
    with pytest.raises(DataError, match="do not shuffle"):
        list(source)


def test_a_file_that_changes_between_passes_is_refused(tmp_path):
    path = c_order(tmp_path)
    for changed, message in (
        (ROWS[:-3], "ends early: after 20 rows, and there were 23 before"),
        (np.concatenate([ROWS, ROWS]), "goes on after row 23"),
        (ROWS.astype(np.float32), "in float32 where"),
        (ROWS[:, :2], "columns"),
    ):
        np.save(path, ROWS)
        source = stream(path, rows=10)
        list(source)
        np.save(path, changed)
        with pytest.raises(DataError, match=message) as refused:
            list(source)
        assert str(path) in str(refused.value)


def test_nan_does_not_look_like_a_change():
    source = stream([torch.full((3, 1), torch.nan)])
    assert len(list(source)) == len(list(source)) == 1


# What is refused at once


def damaged(path, content, cut):
    path.write_bytes(content[:cut] if cut else content)
    return path


def parquet_of(columns, **options):
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), buffer, **options)
    return buffer.getvalue().to_pybytes()


def npy_of(array):
    import io

    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


BAD_FILES = {
    "truncated npy": ("a.npy", npy_of(ROWS)[:-5], "cut short or damaged: copy it"),
    "npy header only": ("a.npy", npy_of(ROWS)[:20], "cut short or damaged: copy it"),
    "no npy": ("a.npy", b"a,b\n1,2\n", "not a .npy file"),
    "pickle": ("a.npy", npy_of(np.array([{}, {}])), "holds an array of Python objects"),
    "text in npy": ("a.npy", npy_of(np.array(["a", "b"])), "array of <U1"),
    "complex": ("a.npy", npy_of(np.ones(3) * 1j), "array of complex128"),
    "one number": ("a.npy", npy_of(np.array(1.0)), "single number"),
    "npy without rows": ("a.npy", npy_of(np.ones((0, 2))), "no rows"),
    "npy without columns": ("a.npy", npy_of(np.ones((3, 0))), "no columns are left"),
    "truncated parquet": ("a.parquet", parquet_of({"a": [1.0, 2.0]})[:-9], "cut short or damaged: copy it"),
    "no parquet": ("a.parquet", b"a,b\n1,2\n", "not a Parquet file"),
    "text in parquet": ("a.parquet", parquet_of({"a": [1.0], "kind": ["oak"]}), "column 'kind' is not numeric.*string"),
    "dates": ("a.parquet", parquet_of({"day": np.array(["2020-01-01"], "M8[ms]")}), "column 'day' is not numeric"),
    "parquet without rows": ("a.parquet", parquet_of({"a": pa.array([], pa.float64())}), "no rows"),
    "parquet without columns": ("a.parquet", parquet_of({}), "no columns are left"),
    "text in csv": ("a.csv", b"a,kind\n1,3\n2,oak\n", r"column 'kind': row 1 \(counted from 0\).*'oak'"),
    "text in csv without a header": ("a.csv", b"1,3\n2,4\n5,oak\n", r"column 'x1': row 2 \(counted from 0\).*'oak'"),
    "ragged csv": ("a.csv", b"a,b\n1,2\n3\n", "not a regular table"),
    "csv header only": ("a.csv", b"a,b\n", "no rows"),
    "csv row numbers": ("a.csv", b",a\n0,1\n", "column 1 has no name"),
    "empty": ("a.csv", b"", "the file is empty"),
    "infinity": ("a.csv", b"a,b\n1,2\n3,inf\n", "column 'b' is infinite in row 1"),
    "unknown kind": ("a.xlsx", b"x", r"'.xlsx' was given.*\.npy, \.parquet, \.csv"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_refused_at_once_in_words(tmp_path, case):
    name, content, message = BAD_FILES[case]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as refused:
        stream(path)
    assert str(path) in str(refused.value)


def test_a_parquet_file_with_damaged_pages_is_refused_by_name(tmp_path):
    content = bytearray(parquet_of({"a": np.arange(1000.0)}, row_group_size=500, use_dictionary=False))
    content[len(content) // 2 : len(content) // 2 + 1500] = b"\xff" * 1500
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a.parquet: row group 1 cannot be read .*copy it") as refused:
        list(stream(path, rows=100))
    assert refused.value.__cause__ is not None


BAD_SOURCES = {
    "generator": (lambda: (ROWS for _ in range(2)), "read only once.*the generator function itself"),
    "iterator": (lambda: iter([ROWS]), "read only once"),
    "no source": (lambda: 3, "not a table"),
    "nothing": (list, "no rows"),
    "empty tensor": (lambda: torch.empty(0, 2), "no rows"),
    "number": (lambda: torch.tensor(1.0), "single number"),
    "complex": (lambda: torch.ones(2, dtype=torch.complex64), "complex64"),
    "lists": (lambda: [[1, 2], [3, 4]], "not a table"),
    "text": (
        lambda: pd.DataFrame({"a": [1, 2], "kind": ["oak", "elm"]}),
        "column 'kind' is not numeric: 'oak' in row 0 .counted from 0",
    ),
    "text in a later batch": (
        lambda: lambda: iter([pd.DataFrame({"a": [1, 2, 3]}), pd.DataFrame({"a": [4, "oak"]})]),
        "'oak' in row 4 .counted from 0",
    ),
    "text in a batch": (lambda: lambda: iter([np.array(["a"])]), "array of <U1"),
    "lazy frame": (lambda: pl.LazyFrame({"a": [1]}), "collect a lazy frame"),
    "infinity": (lambda: torch.tensor([[1.0, 2.0], [3.0, torch.inf]]), "column 'x1' is infinite in row 1"),
    "infinite vector": (lambda: torch.tensor([1.0, -torch.inf]), "column 'x0' is infinite in row 1"),
    "infinite node": (lambda: {"x": torch.tensor([1.0, torch.inf])}, "column 'x' is infinite in row 1"),
    "infinite image": (lambda: torch.full((2, 2, 2), torch.inf), "a value is infinite in row 0"),
    "ragged nodes": (lambda: {"x": torch.ones(3), "y": torch.ones(2)}, "disagree about the number of rows"),
    "missing file": (lambda: "nowhere.npy", "no such file"),
    "missing pattern": (lambda: "nowhere-*.npy", "no files"),
}


@pytest.mark.parametrize("case", BAD_SOURCES)
def test_a_bad_source_is_refused_at_once_in_words(case):
    make, message = BAD_SOURCES[case]
    with pytest.raises(DataError, match=message):
        stream(make())


def test_bad_requests(tmp_path):
    table = pd.DataFrame({"a": [1.0, 2.0], "b": [1.0, -1.0]})
    for options, message in (
        ({"columns": ["aa"]}, r"no column 'aa' \(did you mean 'a'\?\)"),
        ({"columns": ["a", "a"]}, "more than once"),
        ({"weights": "w"}, "no column 'w'"),
        ({"columns": ["a", "b"], "weights": "a"}, "column 'a' holds the weights"),
        ({"columns": ["a"], "weights": "b"}, r"finite and non-negative; row 1 \(counted from 0\) has -1"),
        ({"rows": 0}, "rows must be a whole number, at least 1, got 0"),
    ):
        with pytest.raises(DataError, match=message):
            stream(table, **options)
    with pytest.raises(DataError, match="no columns to choose"):
        stream(torch.ones(2, 2, 2), columns=["x0"])
    with pytest.raises(DataError, match="no columns are left"):
        stream(torch.ones(2), weights="x0")
    with pytest.raises(DataError, match="sample: n must be a whole number"):
        stream(table).sample(0)
    np.save(tmp_path / "a.npy", ROWS)
    table.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="several kinds"):
        stream(tmp_path)


def test_files_that_disagree_are_refused_by_name(tmp_path):
    pq.write_table(pa.table({"a": [1.0], "b": [1.0]}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"a": [1.0], "b": pa.array([1.0], pa.float32())}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"a": [1.0]}), tmp_path / "2.parquet")
    assert len(list(stream([tmp_path / "0.parquet", tmp_path / "1.parquet"], rows=1))) == 2  # one common dtype
    with pytest.raises(DataError, match=r"2.parquet: is unlike .*0.parquet: columns \['a'\]"):
        list(stream(tmp_path, rows=1))


def test_text_elsewhere_does_not_matter(tmp_path):
    table = pd.DataFrame({"a": [1.0, 2.0], "kind": ["oak", "elm"]})
    table.to_parquet(tmp_path / "a.parquet")
    table.to_csv(tmp_path / "a.csv", index=False)
    for source in (table, tmp_path / "a.parquet", tmp_path / "a.csv", [table]):
        assert next(iter(stream(source, columns=["a"]))).values.tolist() == [[1.0], [2.0]]


def test_csv_dialects(tmp_path):
    for text in ("a;b\n1;2\n", "\ufeff\na, b\n\n1, 2\n", "a\tb\r\n1\t2\r\n"):
        (tmp_path / "a.csv").write_bytes(text.encode())
        source = stream(tmp_path / "a.csv")
        assert source.columns == ("a", "b")
        assert next(iter(source)).values.tolist() == [[1.0, 2.0]]
    (tmp_path / "a.csv").write_text("1,2\n3,4\n")
    assert stream(tmp_path / "a.csv").sample(9).values.tolist() == [[1.0, 2.0], [3.0, 4.0]]


# Samples, fingerprints, threads, memory


def test_a_sample_is_uniform_and_depends_on_the_seed_only(tmp_path):
    x = torch.arange(40)
    counts = torch.zeros(40)
    for seed in range(2000):
        drawn = stream(x, rows=16).sample(8, seed).values
        assert len(drawn.unique()) == 8
        counts[drawn] += 1
    # Each count is Binomial(2000, 1/5): mean 400, standard deviation 18; neighbours are nearly independent.
    chi2 = float(((counts - 400) ** 2 / 320).sum())
    assert 20 < chi2 < 65  # 39 degrees of freedom: probabilities 0.004 and 0.006
    assert (counts - 400).abs().max() < 4 * 18


def test_a_sample_carries_weights_and_is_whole_where_rows_are_few():
    table = pd.DataFrame({"a": np.arange(9.0), "w": np.arange(9.0)})
    drawn = stream(table, weights="w", rows=2).sample(4, seed=1)
    assert torch.equal(drawn.values[:, 0], drawn.weights)
    assert stream(table, weights="w", rows=2).sample(100).weights.tolist() == list(range(9))


def test_a_fingerprint_tells_data_apart(tmp_path):
    path = c_order(tmp_path)
    source = stream(path, rows=5)
    first = source.fingerprint()
    list(source)
    assert source.fingerprint() == first == stream(path, rows=7).fingerprint()
    assert first != stream(path, columns=["x0"]).fingerprint()
    assert first != stream(path, weights=None, columns=["x1", "x0", "x2"]).fingerprint()
    np.save(path, ROWS[:-1])
    assert first != stream(path).fingerprint()
    batches = stream(Batches())
    first = batches.fingerprint()
    list(batches)
    assert batches.fingerprint() == first == stream(Batches()).fingerprint()
    assert first != stream([ROWS + 1]).fingerprint()


def reading_threads():
    return [thread for thread in threading.enumerate() if "ppl_vae.data.stream" in thread.name]


def test_no_thread_is_left_behind(tmp_path):
    source = stream(c_order(tmp_path), rows=2)
    blocks = iter(source)
    next(blocks)
    assert reading_threads()
    blocks.close()
    assert not reading_threads()
    for block in source:
        if block.start == 4:
            break
    assert not reading_threads()
    list(source)
    assert not reading_threads()


def test_errors_of_the_users_own_iterable_are_theirs():
    def batches():
        yield ROWS
        raise KeyError("mine")

    source = stream(batches, rows=5)
    with pytest.raises(KeyError, match="mine"):
        list(source)


def test_a_block_keeps_no_file_in_memory(tmp_path):
    """Peak memory while a file of 200 MB is read, twice, sampled and sharded, stays below that of a few blocks."""
    program = """
import resource, sys, numpy as np, torch
from ppl_vae.data import stream
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
source = stream(sys.argv[1])
np.sort(np.zeros(10)), source.sample(10)  # the machinery is loaded
before = peak()
for _ in range(2):
    total = sum(float(block.values.sum()) for block in source)
assert total == source.num_rows * 8
source.sample(1000)
for _ in source.shard(1, 2): pass
print(peak() - before, source.num_rows)
"""
    n = 200 * 2**20 // 64
    file = np.lib.format.open_memmap(tmp_path / "a.npy", mode="w+", dtype=np.float64, shape=(n, 8))
    file[:] = 1
    file.flush()
    del file
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "a.npy")], capture_output=True, text=True, check=True
    )
    grown, rows = map(float, done.stdout.split())
    assert rows == n
    assert grown < 60
