"""Images behind URLs, on fsspec's file system in memory: the same as in a folder."""

import contextlib
import io
import pickle
import tarfile

import fsspec
import numpy as np
import pytest
import tfds_data
from array_record.python.array_record_module import ArrayRecordWriter
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from PIL import Image

from must_jax.data import files, patience
from must_jax.data.decode import UndecodableImageError
from must_jax.data.sources import Classes, ImageFolder, open_source
from must_jax.errors import UserError

CLASSES = Classes(["cat", "dog"])


def _png(i):
    data = io.BytesIO()
    Image.new("RGB", (3, 2), (i, 0, 0)).save(data, "png")
    return data.getvalue()


@pytest.fixture(autouse=True)
def no_second_try():
    # A patch of its own: undone last, `monkeypatch` would leave the bucket refusing to be removed.
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(patience, "_WAITS", ())
        patched.setattr(patience, "_last_read", {})
        yield


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


class _CountingFile(AbstractBufferedFile):
    def _fetch_range(self, start, end):
        self.fs.fetched.append((start, end))
        return self.fs.data[start:end]


class _CountingSystem(AbstractFileSystem):
    """One file, `data`, and which parts of it were asked for; by itself it keeps nothing."""

    protocol = "counting"

    def info(self, path, **_):
        return {"name": path, "size": len(self.data), "type": "file"}

    def _open(self, path, mode="rb", block_size=None, cache_options=None, cache_type="none", **_):
        options = {"cache_type": cache_type, "cache_options": cache_options}
        return _CountingFile(self, path, mode, block_size, **options, size=len(self.data))


def test_headers_and_labels_are_read_by_large_blocks(monkeypatch):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for i in range(200):
            for ending, data in (("png", bytes(90_000)), ("cls", b"cat")):
                info = tarfile.TarInfo(f"{i}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    system = _CountingSystem(skip_instance_cache=True)
    system.data, system.fetched = packed.getvalue(), []
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url: (system, url.split("://")[1]))
    assert len(open_source("counting://x.tar", classes=CLASSES, labels="required")) == 200
    # Once through; the end first, where the archive may turn out to be cut short.
    size, block = len(system.data), 2**23
    assert len(system.fetched) <= -(-size // block) + 1
    assert max(end - start for start, end in system.fetched) <= block


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


@pytest.mark.parametrize("refusing", [False, True])
def test_no_more_is_read_than_the_limit(refusing, monkeypatch):
    class Store(AbstractFileSystem):
        """As S3 and GCS do, it refuses ranges that start at the end of a file if told to."""

        read = 0

        def cat_file(self, path, start=None, end=None, **_):
            data = b"" if path.endswith("empty") else b"12345"
            if refusing and start is not None and start >= len(data):
                raise OSError("416 Requested range not satisfiable")
            Store.read += len(data[start:end])
            return data[start:end]

        def info(self, path, **_):
            return {"size": 0 if path.endswith("empty") else 5}

    monkeypatch.setattr(files, "remote", lambda path: contextlib.nullcontext((Store(), path)))
    assert files.read_file("s3://b/empty", limit=4) == b""
    assert files.read_file("s3://b/full", limit=5) == b"12345"
    Store.read = 0
    with pytest.raises(OSError, match="larger than 0 MiB"):
        files.read_file("s3://b/full", limit=3)
    assert Store.read == 4
    assert files.read_range("s3://b/full", 4, 9) == b"5"
    assert files.read_range("s3://b/full", 5, 9) == b""


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


@pytest.mark.parametrize("pattern", ["{a,b}" * 40, "{000..999999999}", "{0..%s}" % ("9" * 5000)])
def test_braces_that_stand_for_too_many(pattern):
    with pytest.raises(UserError, match=r"more than (1,000,000 files|18 digits)"):
        files.expand(pattern)


def test_a_name_with_brackets_is_taken_as_it_is(tmp_path):
    for name in ("a[1].csv", "a1.csv"):
        (tmp_path / name).write_text("path\nx\n")
    assert files.expand(f"{tmp_path}/a[1].csv") == [f"{tmp_path}/a[1].csv"]
    assert files.expand(f"{tmp_path}/a?.csv") == [f"{tmp_path}/a1.csv"]
    assert files.read_range(f"{tmp_path}/a1.csv", 2, 3) == b"th\n"
    assert np.frombuffer(files.read_range(f"{tmp_path}/a1.csv", 6, 9), np.uint8).size == 1


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/must_jax"


def _record_file(images, path):
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for image in images:
        writer.write(image)
    writer.close()
    return path.read_bytes()


def test_array_record_shards_are_copied_once(bucket, cache, tmp_path, monkeypatch):
    system = fsspec.filesystem("memory")
    for shard in range(2):
        images = [_png(10 * shard + i) for i in range(3)]
        system.pipe(f"/bucket/s-{shard}.array_record", _record_file(images, tmp_path / "x"))
    url = f"{bucket}/s-*.array_record"
    source = open_source(url)
    assert [source.read(record) for record in (0, 5)] == [_png(0), _png(12)]
    assert source.name_of(5) == f"{bucket}/s-1.array_record[2]"
    copies = sorted(cache.rglob("*.array_record"))
    assert copies == [cache / f"memory/bucket/s-{shard}.array_record" for shard in range(2)]

    with monkeypatch.context() as patched:
        patched.setattr(type(system), "get_file", None)  # nothing more is fetched
        assert open_source(url).read(5) == _png(12)
    # Another file of the same name, and even of the same size.
    data = _record_file([_png(200)] * 3, tmp_path / "x")
    assert len(data) == copies[1].stat().st_size
    system.pipe("/bucket/s-1.array_record", data)
    assert open_source(url).read(5) == _png(200)


def test_a_copy_that_cannot_be_made(bucket, cache, tmp_path):
    cache.parent.mkdir()
    cache.touch()
    system = fsspec.filesystem("memory")
    system.pipe("/bucket/x.array_record", b"no records")
    with pytest.raises(UserError, match=r"x\.array_record: cannot be copied to .*must_jax"):
        open_source(f"{bucket}/x.array_record")
    cache.unlink()
    with pytest.raises(UserError, match=r"x\.array_record: can't be read"):
        open_source(f"{bucket}/x.array_record")
    system.pipe("/bucket/s.array_record", _record_file([_png(0)], tmp_path / "x"))
    with pytest.raises(UserError, match=r"y\.array_record: cannot be copied to "):
        open_source(f"{bucket}/{{s,y}}.array_record")


@pytest.mark.parametrize("file_format", ["array_record", "parquet"])
def test_a_tfds_data_set_of_which_one_split_is_copied(bucket, cache, tmp_path, file_format):
    splits = {"train": [(_png(i), i % 2) for i in range(4)], "test": [(_png(9), 1)]}
    names = {"names": ["cat", "dog"]}
    builder = tfds_data.write(tmp_path / "x", splits, names=names, file_format=file_format)
    system = fsspec.filesystem("memory")
    system.put(str(tmp_path / "x"), "/bucket/tfds", recursive=True)
    keywords = {"tfds": "shapes", "data_dir": f"{bucket}/tfds", "classes": CLASSES}
    source = open_source("train[1:3]", labels="required", **keywords)
    local = open_source(
        "train[1:3]", labels="required", **keywords | {"data_dir": str(tmp_path / "x")}
    )
    assert [source.read(i) for i in range(2)] == [local.read(i) for i in range(2)]
    copied = {path.name.removesuffix(".version") for path in cache.rglob("*") if path.is_file()}
    assert copied == {
        path.name for path in builder.data_path.iterdir() if "-test." not in path.name
    }
    with pytest.raises(UserError, match="'cifar10' is not prepared in memory://bucket/tfds"):
        open_source("train", **keywords | {"tfds": "cifar10"})
