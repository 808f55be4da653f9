import io
import subprocess
import sys

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.mixture import GaussianMixture

from ppl_vae.data import faithful, from_frame, galaxies, read_table
from ppl_vae.errors import DataError


def _npy(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def _npz():
    buffer = io.BytesIO()
    np.savez(buffer, a=np.ones(3))
    return buffer.getvalue()


def _parquet(table):
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def test_faithful_is_the_data_set_of_the_literature():
    table = faithful()
    assert table.values.shape == (272, 2)
    assert table.values.dtype == torch.float64
    assert table.missing_rows == 0
    torch.testing.assert_close(
        table.values.mean(0), torch.tensor([3.487783, 70.897059], dtype=torch.float64), atol=1e-6, rtol=0
    )
    x = table.values.numpy()
    mixture = GaussianMixture(2, reg_covar=0, tol=1e-12, max_iter=1000, random_state=0).fit(x)
    assert mixture.score(x) * len(x) == pytest.approx(-1130.2640, abs=1e-4)


def test_galaxies_are_the_data_set_of_the_literature():
    table = galaxies()
    x = table.values[:, 0]
    assert table.values.shape == (82, 1)
    assert table.columns == ("velocity",)
    assert table.missing_rows == 0
    assert bool((x.diff() > 0).all())
    assert x[77].item() == 26.960  # 26.690 in R's MASS
    # Summary of MASS's 82 values in km/s, its 78th put right: mean 20828.17 + 270 / 82, the quartiles as they are.
    assert x.mean().item() * 1000 == pytest.approx(20828.170732 + 270 / 82, abs=1e-5)
    quartiles = np.quantile(table.values.numpy(), [0.0, 0.25, 0.5, 0.75, 1.0]) * 1000
    np.testing.assert_allclose(quartiles, [9172, 19532, 20833.5, 23133.0, 34279], atol=1e-6)


BAD_FILES = {
    "empty": ("a.csv", b"", None, "the file is empty"),
    "blank lines": ("a.csv", b"\n\n", None, "the file is empty"),
    "header only": ("a.csv", b"a,b\n", None, "a header only"),
    "one row": ("a.csv", b"a,b\n1,2\n", None, "a single row"),
    "one row, no header": ("a.csv", b"1,2\n", None, "a single row"),
    "unknown column": (
        "a.csv",
        b"eruptions,waiting\n1,2\n3,4\n",
        ["eruption"],
        r"no column 'eruption' \(did you mean 'eruptions'\?\).*eruptions, waiting",
    ),
    "unlike any column": ("a.csv", b"a,b\n1,2\n3,4\n", ["qqqq"], "no column 'qqqq'. The columns are: a, b"),
    "no columns": ("a.csv", b"a,b\n1,2\n3,4\n", [], "no columns are left"),
    "a column twice": ("a.csv", b"a,b\n1,2\n3,4\n", ["a", "a"], "more than once: a"),
    "columns of one name": ("a.csv", b"a,a\n1,2\n3,4\n", None, "the same name"),
    "text": (
        "a.csv",
        b"a,kind\n1,3\n3,oak\n4,elm\n",
        None,
        r"column 'kind' is not numeric: 'oak' in row 1 .*0.*--columns",
    ),
    "text asked for": ("a.csv", b"a,kind\n1,x\n3,y\n", ["kind"], "column 'kind' is not numeric: 'x' in row 0"),
    "dates": ("a.csv", b"a,day\n1,2020-01-01\n3,2020-01-02\n", None, "column 'day' is not numeric"),
    "infinity": ("a.csv", b"a,b\n1,2\n3,inf\n", None, "column 'b' holds an infinity in row 1 .counted from 0"),
    "empty column": ("a.csv", b"a,b\n1,\n3,\n", None, "column 'b' has no value"),
    "row numbers": ("a.csv", b",a\n0,1\n1,2\n", None, "column 1 has no name"),
    "numbers and gaps": ("a.csv", b"1,,2\n1,2,3\n", None, "Add a header line"),
    "ragged": ("a.csv", b"a,b\n1,2\n3\n", None, "not a regular CSV table"),
    "latin 1": ("a.csv", b"gr\xf6\xdfe,b\n1,2\n3,4\n", None, "not a CSV file in UTF-8"),
    "binary as csv": ("a.csv", _npy(np.ones((3, 2)) * 1.7), None, "CSV"),
    "csv as parquet": ("a.parquet", b"a,b\n1,2\n3,4\n", None, "not a Parquet file"),
    "text in parquet": ("a.parquet", _parquet(pa.table({"a": ["x", "y"]})), None, "column 'a' is not numeric: 'x'"),
    "truncated parquet": ("a.parquet", _parquet(pa.table({"a": [1.0, 2.0]}))[:-9], None, "not a Parquet file"),
    "parquet without columns": ("a.parquet", _parquet(pa.table({})), None, "no columns are left"),
    "csv as npy": ("a.npy", b"a,b\n1,2\n3,4\n", None, "not a .npy file"),
    "pickle in npy": ("a.npy", _npy(np.array([{}, {}]), allow_pickle=True), None, "holds an array of Python objects"),
    "npz as npy": ("a.npy", _npz(), None, "archive"),
    "truncated npy": ("a.npy", _npy(np.ones((3, 2)))[:-5], None, "not a .npy file"),
    "three dimensions": ("a.npy", _npy(np.ones((3, 2, 2))), None, r"shape \[3, 2, 2\]"),
    "no dimension": ("a.npy", _npy(np.array(1.0)), None, r"shape \[\]"),
    "text in npy": ("a.npy", _npy(np.array(["a", "b"])), None, "array of <U1"),
    "complex": ("a.npy", _npy(np.ones(3) * 1j), None, "array of complex128"),
    "npy without rows": ("a.npy", _npy(np.ones((0, 2))), None, "no rows"),
    "npy without columns": ("a.npy", _npy(np.ones((3, 0))), None, "no columns are left"),
    "unknown extension": ("a.xlsx", b"x", None, r"'.xlsx' was given.*\.csv, \.parquet, \.npy"),
    "no extension": ("table", b"x", None, "no extension"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_refused_in_words(tmp_path, case):
    name, content, columns, message = BAD_FILES[case]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as refused:
        read_table(path, columns)
    assert str(path) in str(refused.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_table(tmp_path / "a.csv")
    with pytest.raises(DataError, match="is a folder"):
        read_table(tmp_path)


GOOD_CSV = {
    "header": ("a,b\n1,2\n3,4\n", ("a", "b")),
    "no header": ("1,2\n3,4\n", ("x0", "x1")),
    "spaces": ("a, b\n1, 2\n3, 4\n", ("a", "b")),
    "semicolons": ("a;b\n1;2\n3;4\n", ("a", "b")),
    "tabs, windows": ("a\tb\r\n1\t2\r\n3\t4\r\n", ("a", "b")),
    "blank lines and byte order mark": ("\ufeff\na,b\n\n1,2\n3,4\n", ("a", "b")),
    "quotes": ('"a","b"\n"1",2\n"3",4\n', ("a", "b")),
    "names that are numbers": ("age,2001\n1,2\n3,4\n", ("age", "2001")),
}


@pytest.mark.parametrize("case", GOOD_CSV)
def test_csv_dialects(tmp_path, case):
    text, columns = GOOD_CSV[case]
    path = tmp_path / "A.CSV"
    path.write_bytes(text.encode())
    table = read_table(path)
    assert table.columns == columns
    assert table.values.tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_columns_are_chosen_in_order_and_text_elsewhere_does_not_matter(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(",a,kind,b\n0,1,oak,2\n1,3,elm,4\n")
    table = read_table(path, ["b", "a"])
    assert table.columns == ("b", "a")
    assert table.values.tolist() == [[2.0, 1.0], [4.0, 3.0]]
    assert read_table(path, "a").columns == ("a",)


def test_empty_cells_are_kept_and_counted(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1,\n,NA\n3,4\n")
    table = read_table(path)
    assert len(table) == 3
    assert table.missing_rows == 2
    assert table.values.isnan().tolist() == [[False, True], [True, True], [False, False]]


def test_parquet_and_npy_give_the_same_table(tmp_path):
    frame = pd.DataFrame({"x0": [1, 2, 3], "x1": [0.5, None, 2.5]}).iloc[[2, 0, 1]]
    frame.to_parquet(tmp_path / "a.parquet")  # pandas writes the row labels along
    np.save(tmp_path / "a.npy", frame.to_numpy())
    one, other = read_table(tmp_path / "a.parquet"), read_table(tmp_path / "a.npy")
    assert one.columns == other.columns == ("x0", "x1")
    torch.testing.assert_close(one.values, other.values, equal_nan=True)


CONTAINERS = {
    "pandas": lambda: pd.DataFrame({"x0": [1, 2], "x1": [0.5, np.nan]}),
    "pandas nullable": lambda: pd.DataFrame({"x0": pd.array([1, 2]), "x1": pd.array([0.5, pd.NA], dtype="Float64")}),
    "pandas objects": lambda: pd.DataFrame({"x0": [1, 2], "x1": [0.5, None]}, dtype=object),
    "polars": lambda: pl.DataFrame({"x0": [1, 2], "x1": [0.5, None]}),
    "pyarrow": lambda: pa.table({"x0": [True, 2 == 2], "x1": [0.5, None]}),
    "numpy": lambda: np.array([[1, 0.5], [2, np.nan]], dtype=np.float32),
    "masked": lambda: np.ma.masked_equal([[1, 0.5], [2, 9.0]], 9.0),
    "tensor": lambda: torch.tensor([[1, 0.5], [2, float("nan")]], requires_grad=True),
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_every_container_gives_the_same_table(kind):
    table = from_frame(CONTAINERS[kind]())
    expected = torch.tensor([[1.0, 0.5], [2.0 if kind != "pyarrow" else 1.0, float("nan")]], dtype=torch.float64)
    torch.testing.assert_close(table.values, expected, equal_nan=True)
    assert table.columns == ("x0", "x1")
    assert table.missing_rows == 1


@pytest.mark.parametrize("container", [np.arange(3), torch.arange(3), pd.Series([0, 1, 2]), pl.Series("a", [0, 1, 2])])
def test_one_column(container):
    assert from_frame(container).values.tolist() == [[0.0], [1.0], [2.0]]


def test_the_source_is_not_shared():
    array = np.ones((3, 2))
    from_frame(array).values.zero_()
    assert array.sum() == 6


def test_what_is_no_table_is_refused():
    for thing in (pl.LazyFrame({"a": [1, 2]}), {"a": [1, 2]}, "file.csv", [[1, 2], [3, 4]]):
        with pytest.raises(DataError, match="not a table"):
            from_frame(thing)
    with pytest.raises(DataError, match="not numeric: 'x' in row 1"):
        from_frame(pd.DataFrame({"a": [1, "x", None]}))
    with pytest.raises(DataError, match="not numeric: '1' in row 0"):
        from_frame(pl.DataFrame({"a": ["1", "2"]}))
    with pytest.raises(DataError, match="complex"):
        from_frame(torch.ones(3, dtype=torch.complex64))


def test_importing_the_room_is_light():
    program = "import sys, ppl_vae.data; print([m for m in ('torchvision', 'pandas', 'pyarrow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
