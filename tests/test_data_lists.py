"""Lists of images: what a row means, with which label, and what is refused where."""

import csv
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from must_jax.data.decode import UndecodableImageError
from must_jax.data.sources import Classes, open_source
from must_jax.errors import UserError

CLASSES = Classes(
    ["cat", "sea lion", "snail"],
    folders=["n01", "n02", "n03"],
    synonyms=[["cat", "tabby"], ["sea lion"], ["snail", "tabby"]],
)


def _list(path, text, **keywords):
    path.write_text(text, newline="", encoding="utf-8")
    return open_source(path, **({"classes": CLASSES} | keywords))


def _names(source):
    return [source.name_of(record) for record in range(len(source))]


def _refusal(path, text, **keywords):
    with pytest.raises(UserError) as error:
        _list(path, text, **({"labels": "required"} | keywords))
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    return message.removeprefix(str(path))


cells = st.text(
    st.characters(exclude_categories=("Cs", "Cc", "Z")) | st.sampled_from(" ,;\t\"'\n"), min_size=1
).filter(lambda cell: cell == cell.strip())


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(cells, st.integers(0, 2)), min_size=1, max_size=9),
    separator=st.sampled_from(",;\t"),
    line_end=st.sampled_from(["\n", "\r\n"]),
    bom=st.booleans(),
    turned=st.booleans(),
)
def test_what_csv_writes_is_read_back(tmp_path_factory, rows, separator, line_end, bom, turned):
    path = tmp_path_factory.mktemp("list") / ("l.tsv" if separator == "\t" else "l.csv")
    with path.open("w", newline="", encoding="utf-8-sig" if bom else "utf-8") as file:
        writer = csv.writer(file, delimiter=separator, lineterminator=line_end)
        writer.writerow(["ClassId", "width", "Filename"][:: -1 if turned else 1])
        for name, label in rows:
            writer.writerow([label, 7, name][:: -1 if turned else 1])
    source = open_source(path, classes=CLASSES, labels="required")
    root = f"{path.parent}/"
    expected = [name if name.startswith("/") or "://" in name else root + name for name, _ in rows]
    assert _names(source) == expected
    assert source.labels.tolist() == [label for _, label in rows]
    assert source.labels.dtype == np.int32
    assert _names(pickle.loads(pickle.dumps(source))) == expected


def test_a_test_list_of_gtsrb(tmp_path):
    source = _list(
        tmp_path / "GT-final_test.csv",
        "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\r\n"
        "00000.ppm;53;54;6;5;48;49;2\r\n00001.ppm;42;45;5;5;36;40;1\r\n",
        labels="required",
    )
    assert _names(source) == [str(tmp_path / "00000.ppm"), str(tmp_path / "00001.ppm")]
    assert source.labels.tolist() == [2, 1]


@pytest.mark.parametrize("text", ["a.jpg\nb c, d.jpg\n\n", "path\na.jpg\nb c, d.jpg"])
def test_paths_alone(tmp_path, text):
    source = _list(tmp_path / "l.tsv", text)
    assert _names(source) == [str(tmp_path / "a.jpg"), str(tmp_path / "b c, d.jpg")]
    assert source.labels is None


def test_where_paths_lead(tmp_path):
    text = "image_path\nsub/a.jpg\n/abs/b.jpg\ngs://bucket/c.jpg\n../d.jpg\n"
    assert _names(_list(tmp_path / "l.csv", text)) == [
        f"{tmp_path}/sub/a.jpg",
        "/abs/b.jpg",
        "gs://bucket/c.jpg",
        f"{tmp_path}/../d.jpg",
    ]


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        (["cat", "Sea_Lion", "snail"], [0, 1, 2]),
        (["n03", "n01", "sea lion"], [2, 0, 1]),
        (["2", "0", "0"], [2, 0, 0]),
    ],
)
def test_labels_are_names_folders_or_numbers(tmp_path, cells, labels):
    text = "path,label\n" + "".join(f"{i}.jpg,{cell}\n" for i, cell in enumerate(cells))
    assert _list(tmp_path / "l.csv", text, labels="required").labels.tolist() == labels
    assert _list(tmp_path / "l.csv", text, classes=None).labels is None


def test_numbers_that_are_names_are_names(tmp_path):
    classes = Classes(["3", "1", "2"])
    text = "path,label\na,1\nb,3\n"
    assert _list(tmp_path / "l.csv", text, classes=classes).labels.tolist() == [1, 0]
    assert _refusal(tmp_path / "l.csv", text + "c,0\n", classes=classes) == (
        ", row 4: label 0 is none of the classes, which are called by numbers"
    )


def test_columns_by_name(tmp_path):
    text = "path,label,thumb,Fine Label\nbig.jpg,cat,small.jpg,snail\n"
    keywords = {"image_field": "Thumb", "label_field": "fine_label", "labels": "required"}
    source = _list(tmp_path / "l.csv", text, **keywords)
    assert _names(source) == [str(tmp_path / "small.jpg")]
    assert source.labels.tolist() == [2]


@pytest.mark.parametrize("label", ["cart", "", "3", "tabby"])
def test_unknown_labels_are_refused_where_labels_count(tmp_path, label):
    path, text = tmp_path / "l.csv", f"path,label\na.jpg,cat\n\nb.jpg,{label}\n"
    expected = {
        "cart": ", row 4: label 'cart' is not a class; nearest: 'n01'",
        "": ", row 4: no label",
        "3": ", row 4: label '3' is not a class; nearest: ",
        # The name of two classes.
        "tabby": ", row 4: label 'tabby' is not a class; nearest: ",
    }[label]
    assert _refusal(path, text).startswith(expected)
    assert _list(path, text, labels="auto").labels is None
    # A column that is asked for by name counts everywhere.
    assert _refusal(path, text, labels="auto", label_field="label").startswith(expected)


@pytest.mark.parametrize(
    ("text", "keywords", "expected"),
    [
        ("", {}, ": no images in this list"),
        ("path,label\n", {}, ": no images in this list"),
        ("a.jpg,cat\nb.jpg,cat\n", {}, ": no column of row 1 has a usual name"),
        ("path,label\na.jpg,cat\n", {"image_field": "thumb"}, ": no column of row 1 is called"),
        ("path\na.jpg\n", {}, ": labels are needed"),
        ("path,label\na.jpg,cat\n", {"label_field": "fine"}, "no column is called fine"),
        ("path,label\na.jpg,cat\nb.jpg\n", {}, ", row 3: 1 cells, and row 1 has 2"),
        ("path,label\na.jpg,cat,x\n", {}, ", row 2: 3 cells, and row 1 has 2"),
        ("path,label\na.jpg,cat\n,cat\n", {}, ", row 3: nothing in column 'path'"),
        ('path,label\n"a.jpg,cat\n', {}, ", row 2: unexpected end of data"),
        ('path,label\n"a"b.jpg,cat\n', {}, ", row 2: ',' expected"),
        ("path,label\na.jpg,4\nb.jpg,-1\n", {}, ", row 2: label 4 is not from 0 to 2"),
    ],
)
def test_refusals_name_the_row(tmp_path, text, keywords, expected):
    assert expected in _refusal(tmp_path / "l.csv", text, **keywords)


def test_not_utf8_and_not_there(tmp_path):
    path = tmp_path / "l.csv"
    path.write_bytes("path\na.jpg\nbjörn.jpg\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"l\.csv, row 3: not UTF-8"):
        open_source(path)
    with pytest.raises(UserError, match=r"m\.csv does not exist"):
        open_source(tmp_path / "m.csv")


def test_a_missing_image_is_told_when_it_is_read(tmp_path):
    source = _list(tmp_path / "l.csv", "path\nmissing.jpg\n")
    with pytest.raises(UndecodableImageError, match=rf"{tmp_path}/missing\.jpg: No such file"):
        source.read(0)


def _parquet(path, /, **columns):
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize(
    ("values", "labels"), [(["snail", "cat"], [2, 0]), ([1, 2], [1, 2]), (["1", "2"], [1, 2])]
)
def test_parquet(tmp_path, values, labels):
    path = _parquet(
        tmp_path / "l.parquet", extra=[1.5, None], file=["a.jpg", "b.jpg"], label=values
    )
    source = open_source(path, classes=CLASSES, labels="required")
    assert _names(source) == [str(tmp_path / "a.jpg"), str(tmp_path / "b.jpg")]
    assert source.labels.tolist() == labels


@pytest.mark.parametrize(
    "kind", [pa.string_view(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())]
)
def test_every_kind_of_text_in_parquet(tmp_path, kind):
    """As pandas and Polars write it."""
    columns = {"path": ["a.jpg", "b.jpg"], "label": ["cat", "snail"]}
    arrays = {name: pa.array(values).cast(kind) for name, values in columns.items()}
    source = open_source(_parquet(tmp_path / "l.parquet", **arrays), classes=CLASSES)
    assert _names(source) == [str(tmp_path / "a.jpg"), str(tmp_path / "b.jpg")]
    assert source.labels.tolist() == [0, 2]


def test_categories_of_numbers_in_parquet(tmp_path):
    labels = pa.array([2, 0]).dictionary_encode()
    path = _parquet(tmp_path / "l.parquet", path=["a.jpg", "b.jpg"], label=labels)
    assert open_source(path, classes=CLASSES, labels="required").labels.tolist() == [2, 0]


def test_a_parquet_file_whose_footer_is_damaged(tmp_path):
    """The library complains with an OSError, on several lines."""
    path = _parquet(tmp_path / "l.parquet", path=["a.jpg", "b.jpg"])
    content = bytearray(path.read_bytes())
    content[-20:-8] = b"\xff" * 12
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"not a Parquet file that can be read") as error:
        open_source(path)
    assert "\n" not in str(error.value)


def test_parquet_refusals(tmp_path):
    path = tmp_path / "l.parquet"
    for columns, expected in [
        ({"other": ["a.jpg"]}, r"no column has a usual name for images; it has 'other'"),
        ({"image": [{"bytes": b"x"}]}, r"column 'image' has values of type struct<bytes: binary>"),
        ({"path": ["a.jpg", None], "label": [0, 0]}, r"row 2: column 'path' has nothing"),
        ({"path": ["a.jpg"], "label": [0.5]}, r"column 'label' has values of type double"),
        ({"path": ["a.jpg"], "label": [True]}, r"column 'label' has values of type bool"),
        # No date of Python's.
        (
            {"path": ["a.jpg"], "label": pa.array([2**31 - 1], pa.date32())},
            r"column 'label' has values of type date32",
        ),
        ({"path": ["a.jpg", "b.jpg"], "label": [0, None]}, r"row 2: no label"),
        ({"path": ["a.jpg"], "label": [3]}, r"row 1: label 3 is not from 0 to 2"),
    ]:
        _parquet(path, **columns)
        with pytest.raises(UserError, match=expected):
            open_source(path, classes=CLASSES, labels="required")
    path.write_bytes(b"path,label")
    with pytest.raises(UserError, match=r"not a Parquet file that can be read") as error:
        open_source(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("numbers", [["1", "2", "3"], ["01", "02", "03"]])
def test_classes_that_are_called_by_numbers(tmp_path, numbers):
    classes = Classes(numbers)
    for values, expected in (("12", [0, 1]), ("321", [2, 1, 0])):
        text = "path,label\n" + "".join(f"{i}.png,{value}\n" for i, value in enumerate(values))
        listed = _list(tmp_path / "l.csv", text, classes=classes)
        pq.write_table(
            pa.table({"path": list(values), "label": [int(value) for value in values]}),
            tmp_path / "l.parquet",
        )
        table = open_source(tmp_path / "l.parquet", classes=classes)
        assert listed.labels.tolist() == table.labels.tolist() == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a" * 200_000, ", row 1: field larger than field limit"),
        ("path,label\na," + "1" * 5000, ", row 2: label '111"),
    ],
)
def test_cells_without_end(tmp_path, text, expected):
    assert _refusal(tmp_path / "l.csv", text).startswith(expected)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"path": ["x" * 1_000_000] * 60}, "a cell of 1000000 bytes; 131072 are the most"),
        ({"path": ["a"] + ["x" * 1_000_000] * 60}, "a cell of 1000000 bytes"),
        ({"path": ["x" * 100_000] * 6000}, r"bytes stand for more than \d+ MiB"),
        (
            {"path": pa.DictionaryArray.from_arrays([0] * 6000, ["x" * 100_000])},
            r"bytes stand for more than \d+ MiB",
        ),
        ({"path": ["a"] * 60, "label": ["x" * 1_000_000] * 60}, "a cell of 1000000 bytes"),
        ({"path": pa.DictionaryArray.from_arrays([0] * 4_000_000, ["a"])}, "4000000 rows in"),
    ],
)
def test_a_parquet_bomb(tmp_path, columns, expected):
    path = tmp_path / "l.parquet"
    rows = len(columns["path"])
    pq.write_table(
        pa.table(columns),
        path,
        compression="brotli",
        row_group_size=rows,
        data_page_size=2**30,
        max_rows_per_page=rows,
    )
    assert path.stat().st_size < 10_000
    with pytest.raises(UserError, match=rf"not a Parquet file that can be read .*{expected}"):
        open_source(path, classes=CLASSES)


def test_a_long_list_in_groups_of_rows_keeps_its_order(tmp_path):
    names = [f"folder/of/images/{i:06d}.jpg" for i in range(20_000)]
    table = pa.table(
        {"path": names, "label": pa.array(["cat", "snail"] * 10_000).dictionary_encode()}
    )
    pq.write_table(table, tmp_path / "l.parquet", row_group_size=7_000)
    source = open_source(tmp_path / "l.parquet", classes=CLASSES)
    assert _names(source) == [str(tmp_path / name) for name in names]
    assert source.labels.tolist() == [0, 2] * 10_000


@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_a_list_that_is_packed_well_is_no_bomb(tmp_path, encoding):
    path = tmp_path / "l.parquet"
    names = [f"https://example.com/{'x' * 150}/{i:09d}.jpg" for i in range(200_000)]
    _delta(path, encoding, names)
    if encoding == "DELTA_BYTE_ARRAY":
        assert path.stat().st_size < sum(map(len, names)) / 1500
    assert open_source(path).name_of(199_999) == names[-1]


@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_a_parquet_bomb_of_differences(tmp_path, encoding):
    path = tmp_path / "l.parquet"
    _delta(path, encoding, ["a"] * 100 + ["x" * 1_000_000] * 60)
    assert path.stat().st_size < 10_000
    with pytest.raises(UserError, match="a cell of 1000000 bytes; 131072 are the most"):
        open_source(path)


def _delta(path, encoding, names):
    encodings = {"use_dictionary": False, "column_encoding": {"path": encoding}}
    pq.write_table(pa.table({"path": names}), path, compression="brotli", **encodings)


def test_groups_without_rows(tmp_path):
    empty, one = (pa.table({"path": pa.array(names, pa.string())}) for names in ([], ["a.jpg"]))
    with pq.ParquetWriter(tmp_path / "l.parquet", empty.schema) as writer:
        writer.write_table(empty)
        writer.write_table(one)
    assert _names(open_source(tmp_path / "l.parquet")) == [str(tmp_path / "a.jpg")]
    pq.write_table(empty, tmp_path / "l.parquet")
    with pytest.raises(UserError, match="no images in this list"):
        open_source(tmp_path / "l.parquet")


def test_ill_formed_parquet(tmp_path):
    path = tmp_path / "l.parquet"
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["path", "path"])
    binary = pa.array([b"\xff\xfe"]).view(pa.string())
    for table in (twice, pa.table({"path": binary})):
        pq.write_table(table, path)
        with pytest.raises(UserError, match="not a Parquet file that can be read") as error:
            open_source(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name",
    ["reference://a.png::file:///dev/zero", "simplecache::file:///dev/zero", "a::memory://b"],
)
def test_chains_of_urls_are_images_that_cannot_be_read(tmp_path, name, monkeypatch):
    monkeypatch.setattr("fsspec.core.url_to_fs", None)
    source = _list(tmp_path / "l.csv", f"path\n{name}\n")
    with pytest.raises(UndecodableImageError) as error:
        source.read(0)
    assert str(error.value) == f"{name}: '::' in a URL, which no list may have"


def test_colons_in_the_names_of_local_files(tmp_path):
    (tmp_path / "a::b.png").write_bytes(b"picture")
    source = _list(tmp_path / "l.csv", f"path\na::b.png\nfile://{tmp_path}/a::b.png\n")
    assert [source.read(record) for record in range(2)] == [b"picture"] * 2


def test_a_chain_as_the_list_itself(tmp_path):
    (tmp_path / "a.png").write_bytes(b"picture")
    (tmp_path / "l.csv").write_text("path\na.png\na::b.png\n")
    source = open_source(f"simplecache::file://{tmp_path}/l.csv", classes=CLASSES)
    assert source.read(0) == b"picture"
    with pytest.raises(UndecodableImageError, match="'::' in a URL"):
        source.read(1)
