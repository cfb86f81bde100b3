"""Lists of strangers: how much memory and time one takes, and rows that lead nowhere."""

import time
import tracemalloc

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_run

from must_jax.class_names import ClassNames
from must_jax.data import patience
from must_jax.data.decode import UndecodableImageError
from must_jax.data.examples import EvalTransform
from must_jax.data.sources import Classes, list_file, open_source, parquet_cells, text_list
from must_jax.data.sources.fields import find_field
from must_jax.data.sources.strings import Strings
from must_jax.errors import UserError
from must_jax.experiment import Experiment

CLASSES = Classes(["cat", "dog"])


@pytest.fixture
def opened(tmp_path):
    def opened(text, ending="csv", **keywords):
        (tmp_path / f"l.{ending}").write_text(text, newline="")
        return open_source(tmp_path / f"l.{ending}", classes=CLASSES, **keywords)

    return opened


def _memory(monkeypatch, size):
    for module in (list_file, text_list):
        monkeypatch.setattr(module, "machine_memory", lambda: size)


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_rows_are_counted_before_they_are_made(opened, monkeypatch, end):
    text = "path" + end + f"a{end}" * 9999
    needed = 4 * (2 * len(text) + text_list._ROW_BYTES * 10_001)
    _memory(monkeypatch, needed)
    assert len(opened(text)) == 9999
    _memory(monkeypatch, needed - 4)
    monkeypatch.setattr(text_list, "_rows", None)
    with pytest.raises(UserError, match=r"l\.csv: 10,001 rows take more than a quarter of this"):
        opened(text)


def test_labels_are_counted_where_they_differ(opened, monkeypatch):
    _memory(monkeypatch, 4 * 80_000)
    assert len(opened("path,label\n" + "a,cat\na,dog\n" * 500)) == 1000
    with pytest.raises(UserError, match=r"l\.csv: \d\d labels that differ take more than"):
        opened("path,label\n" + "".join(f"a,{i}\n" for i in range(1000)))


def test_a_list_that_is_larger_than_it_may_be_is_not_read(opened, monkeypatch):
    _memory(monkeypatch, 4 * 10)
    for ending in ("csv", "parquet"):
        with pytest.raises(UserError, match=rf"l\.{ending}: cannot be read \(larger than 0 MiB"):
            opened("path\nabcdef\n", ending)


def test_millions_of_rows_of_a_few_bytes_take_no_more_than_was_counted(tmp_path):
    """Each takes some 20 bytes, not the 130 of Python's strings and numbers."""
    data = b"path,label\n" + b"aa,cat\n" * 100_000
    tracemalloc.start()
    columns = text_list.read_text_list(data, path="l.csv", image_field="", label_field="")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(columns.paths) == len(columns.labels) == len(columns.rows) == 100_000
    assert most < text_list._ROW_BYTES * 100_000


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("path\n" + "a," * 2**20, 2),
        ("path,x\n" + '"\n",' * 2**20, 262146),
        ("a\n" * 9 + "b" * (2**20 + 1), 10),
    ],
)
def test_a_row_without_end(opened, text, row):
    with pytest.raises(UserError, match=rf"l\.csv, row {row}: more than 1,048,576 letters"):
        opened(text)


def test_a_row_of_many_columns_takes_no_long_time_to_look_through(opened):
    columns = [f"c{i}" for i in range(200_000)]
    began = time.process_time()
    assert find_field([*columns, "Image-Name"], named="", usual=["file", "imagename"])
    assert time.process_time() - began < 3
    assert find_field(["a_b", "AB", "file"], named="", usual=["x", "ab", "file"]) == "a_b"
    assert find_field(["a_b", "ab"], named="c", usual=["ab"]) is None
    with pytest.raises(UserError, match="it has 'c0', 'c1'"):
        opened("\t".join(columns[:100_000]) + "\n", "tsv")


def test_text_that_is_not_utf8_far_behind(tmp_path):
    (tmp_path / "l.csv").write_bytes(b"\xef\xbb\xbfpath\n" + b"a\n" * 50_000 + b"\xe9\n")
    with pytest.raises(UserError, match=r"l\.csv, row 50002: not UTF-8"):
        open_source(tmp_path / "l.csv")


def test_strings_of_a_generator():
    texts = ["a", "", "é\udcff", "\U0001f600" * 9]
    strings = Strings(text for text in texts)
    assert list(strings) == texts
    assert [strings[i] for i in range(4)] == texts
    assert len(Strings([])) == 0


STRANGE = ["abc://x", "zip:///x", "github://a/b", "simplecache:///x", "reference://x"]


@pytest.mark.parametrize("url", STRANGE)
def test_a_row_of_which_no_file_system_can_be_had_is_skipped_and_named(opened, url):
    source = opened(f"path\n{url}\n")
    with pytest.raises(UndecodableImageError, match=rf"^{url}: can't be opened: "):
        source.read(0)
    example = EvalTransform(source=source, image_size=8)(0)
    assert example["failed"] == 0
    assert str(example["reason"]).startswith("can't be opened: ")


def test_one_stranger_among_images_ends_no_run(tmp_path):
    tiny_run.write_images(tmp_path / "train", count=2, seed=0)
    source = _images(tmp_path, ["abc://x", "train/000.png", "train/001.png"])
    transform = EvalTransform(source=source, image_size=8)
    assert [int(transform(i)["failed"]) for i in range(3)] == [0, -1, -1]


@pytest.mark.parametrize(
    ("url", "told"),
    [("gs://b/x.png", "gs:// needs gcsfs; pip install gcsfs"), ("abc://x", "not known: abc")],
)
def test_a_list_of_nothing_else_is_refused_at_the_start(tmp_path, url, told, monkeypatch):
    opening = fsspec.core.url_to_fs

    def missing(path):
        if path.startswith("gs://"):
            raise ImportError("Please install gcsfs")
        return opening(path)

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(UserError, match=rf"none of the 8 images .*l\.csv decode.*{told}") as error:
        _images(tmp_path, [url] * 20)
    assert "\n" not in str(error.value)


def _images(folder, rows):
    """A list's images as a program opens them."""
    (folder / "l.csv").write_text("\n".join(["path", *rows]))
    experiment = Experiment(
        config=tiny_run.config(folder),
        spec=tiny_run.SPEC,
        clip_params={},
        tokenizer=None,
        classes=ClassNames((("cat",),)),
        templates=(),
    )
    return experiment.images(str(folder / "l.csv"))


@pytest.mark.parametrize("file", ["mem", "status"])
def test_files_of_proc_are_empty_and_nobody_waits_for_them(opened, monkeypatch, file, tmp_path):
    waits = []
    monkeypatch.setattr(patience, "_LOCAL_WAITS", ())
    monkeypatch.setattr(patience, "tell_seldom", lambda *_: waits.append(1))
    (tmp_path / "images").mkdir()
    (tmp_path / "images/x.png").symlink_to(f"/proc/self/{file}")
    for source in (opened(f"path\n/proc/self/{file}\n"), open_source(tmp_path / "images")):
        assert source.read(0) == b""
        example = EvalTransform(source=source, image_size=8)(0)
        assert example["failed"] == 0
        assert example["reason"] == np.array("empty")
    assert not waits


def test_cells_of_a_table_count_as_what_python_makes_of_them(tmp_path, monkeypatch):
    """Sixty bytes of two letters, where the table has ten."""
    monkeypatch.setattr(parquet_cells, "machine_memory", lambda: 4 * 2**21)
    path = tmp_path / "l.parquet"
    pq.write_table(pa.table({"path": ["ab", "cd"] * 15_000}), path)
    assert len(open_source(path)) == 30_000
    pq.write_table(pa.table({"path": ["ab", "cd"] * 50_000}), path)
    with pytest.raises(UserError, match="stand for more than 2 MiB"):
        open_source(path)
