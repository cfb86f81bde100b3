"""Images behind URLs, on fsspec's file system in memory: the same as in a folder."""

import io
import pickle
import tarfile

import fsspec
import numpy as np
import pytest
from PIL import Image

from must_jax.data import files
from must_jax.data.decode import UndecodableImageError
from must_jax.data.sources import Classes, ImageFolder, open_source
from must_jax.errors import UserError

CLASSES = Classes(["cat", "dog"])


def _png(i):
    data = io.BytesIO()
    Image.new("RGB", (3, 2), (i, 0, 0)).save(data, "png")
    return data.getvalue()


@pytest.fixture
def bucket():
    system = fsspec.filesystem("memory")
    root = "/bucket"
    for path, data in {
        "images/dog/b.PNG": _png(1),
        "images/cat/deep/a.png": _png(2),
        "images/cat/.hidden.png": b"",
        "images/.cache/x.png": b"",
        "images/notes.txt": b"",
        "list.csv": b"path,label\nimages/dog/b.PNG,dog\nmemory://bucket/images/cat/deep/a.png,cat\n",
    }.items():
        system.pipe(f"{root}/{path}", data)
    for shard in range(2):
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for i in range(3):
                for ending, data in (("png", _png(10 * shard + i)), ("cls", b"%d" % (i % 2))):
                    info = tarfile.TarInfo(f"{i}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        system.pipe(f"{root}/s-{shard}.tar", packed.getvalue())
    yield "memory://bucket"
    system.rm(root, recursive=True)


def test_a_folder(bucket):
    source = open_source(f"{bucket}/images/", classes=CLASSES, labels="required")
    assert isinstance(source, ImageFolder)
    names = [source.name_of(record) for record in range(len(source))]
    assert names == [f"{bucket}/images/cat/deep/a.png", f"{bucket}/images/dog/b.PNG"]
    assert source.labels.tolist() == [0, 1]
    assert pickle.loads(pickle.dumps(source)).read(0) == _png(2)


def test_a_list(bucket):
    source = open_source(f"{bucket}/list.csv", classes=CLASSES, labels="required")
    assert [source.read(record) for record in range(2)] == [_png(1), _png(2)]
    assert source.labels.tolist() == [1, 0]


@pytest.mark.parametrize("pattern", ["s-*.tar", "s-{0..1}.tar"])
def test_shards(bucket, pattern):
    source = open_source(f"{bucket}/{pattern}", classes=CLASSES, labels="required")
    again = pickle.loads(pickle.dumps(source))
    expected = [_png(10 * shard + i) for shard in range(2) for i in range(3)]
    assert [again.read(record) for record in range(6)] == expected
    assert source.labels.tolist() == [0, 1, 0] * 2
    assert source.name_of(4) == f"{bucket}/s-1.tar:1"


def test_a_pattern_of_local_urls(tmp_path):
    for i in range(2):
        tarfile.open(tmp_path / f"s-{i}.tar", "w").close()
    expected = [f"file://{tmp_path}/s-{i}.tar" for i in range(2)]
    assert files.expand(f"file://{tmp_path}/s-*.tar") == expected


def test_what_is_missing(bucket):
    for path, expected in [
        (f"{bucket}/nothing", "does not exist"),
        (f"{bucket}/nothing-*.tar", "no file matches"),
        (f"{bucket}/nothing.tar", "does not exist"),
        (f"{bucket}/nothing.csv", "does not exist"),
    ]:
        with pytest.raises(UserError, match=expected) as error:
            open_source(path)
        assert path in str(error.value)
        assert "\n" not in str(error.value)
    source = open_source(f"{bucket}/images")
    fsspec.filesystem("memory").rm("/bucket/images/dog/b.PNG")
    with pytest.raises(UndecodableImageError, match=r"dog/b\.PNG"):
        source.read(1)


def test_errors_of_any_kind_are_one_line(bucket, monkeypatch):
    class RefusedError(Exception):
        pass

    def refuse(self, *_, **__):
        raise RefusedError("no credentials\nfor bucket")

    source = open_source(f"{bucket}/images")
    system = type(fsspec.filesystem("memory"))
    for method in ("cat_file", "isdir", "find", "glob"):
        monkeypatch.setattr(system, method, refuse)
    for path in ("images", "s-*.tar", "list.csv"):
        with pytest.raises(UserError, match="RefusedError: no credentials") as error:
            open_source(f"{bucket}/{path}")
        assert "\n" not in str(error.value)
    with pytest.raises(UndecodableImageError, match="RefusedError: no credentials"):
        source.read(0)


@pytest.mark.parametrize(
    ("url", "package"), [("gs://b/x", "gcsfs"), ("s3://b/x", "s3fs"), ("az://b/x", "adlfs")]
)
def test_the_library_to_install_is_named(url, package, monkeypatch):
    def missing(*_, **__):
        raise ImportError(f"Please install {package}")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(UserError, match=rf"{url}: \w+:// needs {package}; pip install {package}"):
        open_source(url)


def test_what_a_chain_of_urls_needs_is_told(monkeypatch):
    def missing(*_, **__):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(UserError, match="Install s3fs to access S3"):
        open_source("simplecache::s3://b/x.tar")


def test_no_such_kind_of_url():
    with pytest.raises(UserError, match="gss://b/x can't be opened: Protocol not known: gss"):
        open_source("gss://b/x")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a{08..11}.tar", ["a08.tar", "a09.tar", "a10.tar", "a11.tar"]),
        ("{x,y}/{0..1}", ["x/0", "x/1", "y/0", "y/1"]),
        ("plain", ["plain"]),
        ("{odd}", ["{odd}"]),
    ],
)
def test_braces(pattern, expected):
    assert files.expand(pattern) == expected


def test_a_name_with_brackets_is_taken_as_it_is(tmp_path):
    for name in ("a[1].csv", "a1.csv"):
        (tmp_path / name).write_text("path\nx\n")
    assert files.expand(f"{tmp_path}/a[1].csv") == [f"{tmp_path}/a[1].csv"]
    assert files.expand(f"{tmp_path}/a?.csv") == [f"{tmp_path}/a1.csv"]
    assert files.read_range(f"{tmp_path}/a1.csv", 2, 3) == b"th\n"
    assert np.frombuffer(files.read_range(f"{tmp_path}/a1.csv", 6, 9), np.uint8).size == 1
