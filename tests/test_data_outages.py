"""Remote reads that fail for a while, on fsspec's file system in memory."""

import errno
import functools
import io
import os
import pathlib
import pickle
import subprocess
import sys
import tarfile

import fsspec
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from must_jax.data import files, patience
from must_jax.data.decode import UndecodableImageError
from must_jax.data.sources import open_source
from must_jax.errors import UserError
from must_jax.failed_images import FailedImages

SYSTEM = fsspec.filesystem("memory")
PPM = b"P6 1 1 255\n\x01\x02\x03"


class HttpError(Exception):
    """As gcsfs has it."""

    def __init__(self, code):
        super().__init__(f"answer {code}")
        self.code = code


class NoCredentialsError(Exception):
    """As botocore has it."""


class BusyError(Exception):
    """As a cloud's library raises it."""


class Outage:
    """Lets a method of the file system fail some times, and counts seconds instead of sleeping.

    Attributes:
      ends_after: such seconds, where it is not endless.
    """

    def __init__(self, monkeypatch):
        self._monkeypatch = monkeypatch
        self.calls = 0
        self.slept = []
        self.ends_after = float("inf")
        monkeypatch.setattr(patience, "_is_over", self)
        monkeypatch.setattr(patience, "monotonic", lambda: self.now)
        for name in ("_last_told", "_last_read"):
            monkeypatch.setattr(patience, name, {})

        self.now, self.is_over = 1e6, False

    def set(self):
        self.is_over = True

    def wait(self, seconds):
        """As an event does, that is set when nobody waits any more."""
        if not self.is_over:
            self.slept.append(seconds)
            self.now += seconds
        if sum(self.slept) > self.ends_after:
            self.end()
        return self.is_over

    def start(self, method, *errors, forever=False, of=""):
        """Of files whose path ends with `of`."""
        works, left = getattr(type(SYSTEM), method), list(errors)

        def fail(*args, **keywords):
            self.calls += 1
            if left and args[1].endswith(of):
                raise left[0] if forever else left.pop(0)
            return works(*args, **keywords)

        self._works = method, works
        self._monkeypatch.setattr(type(SYSTEM), method, fail)

    def end(self):
        self._monkeypatch.setattr(type(SYSTEM), *self._works)


@pytest.fixture
def outage(monkeypatch):
    return Outage(monkeypatch)


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    SYSTEM.pipe({"/b/images/0.ppm": PPM, "/b/images/1.ppm": PPM})
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        info = tarfile.TarInfo("0.ppm")
        info.size = len(PPM)
        tar.addfile(info, io.BytesIO(PPM))
    SYSTEM.pipe("/b/x.tar", packed.getvalue())
    writer = ArrayRecordWriter(str(tmp_path / "x"), "group_size:1")
    writer.write(PPM)
    writer.close()
    SYSTEM.pipe("/b/x.array_record", (tmp_path / "x").read_bytes())
    yield "memory://b"
    SYSTEM.rm("/b", recursive=True)


ERRORS = (BusyError("503\nslow down"), HttpError(429), TimeoutError())


def assert_waited(outage, count):
    """Twice as long from try to try, less a random part of at most a half."""
    longest = np.array([1, 2, 4, 8, 16, 32])[:count]
    assert len(outage.slept) == count
    assert np.all(outage.slept <= longest)
    assert np.all(outage.slept >= longest / 2)


@pytest.mark.parametrize("images", ["images", "x.tar"])
def test_an_image_is_read_when_the_bucket_is_back(images, bucket, outage, capsys):
    source = open_source(f"{bucket}/{images}")
    outage.start("cat_file", *ERRORS)
    assert source.read(0) == PPM
    assert outage.calls == 4
    assert_waited(outage, 3)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert told[0].startswith(f"{bucket}/{images}")
    assert "BusyError: 503\\nslow down; reads that fail so are tried again" in told[0]


@pytest.mark.parametrize(("shards", "method"), [("x.tar", "_open"), ("x.array_record", "get_file")])
def test_shards_are_opened_when_the_bucket_is_back(shards, method, bucket, outage, capsys):
    outage.start(method, *ERRORS)
    source = open_source(f"{bucket}/{shards}")
    assert source.read(0) == PPM
    told = capsys.readouterr().err
    assert ("x.array_record: copied to " in told) == (shards == "x.array_record")
    assert_waited(outage, 3)


# What a file system's own `isdir` keeps to itself is an outage too, also if it ends right after.
@pytest.mark.parametrize("errors", [ERRORS, ERRORS[::-1], [TimeoutError()]])
@pytest.mark.parametrize("method", ["info", "find"])
def test_a_folder_is_found_when_the_bucket_is_back(method, errors, bucket, outage):
    outage.start(method, *errors)
    assert len(open_source(f"{bucket}/images")) == 2
    assert outage.calls > len(errors)


def test_shards_are_found_when_the_bucket_is_back(bucket, outage):
    outage.start("glob", *ERRORS)
    assert len(open_source(f"{bucket}/*.tar")) == 1
    assert_waited(outage, 3)


def test_a_bucket_that_stays_away_is_not_said_to_lack_the_folder(bucket, outage):
    outage.start("info", BusyError("503"), forever=True)
    with pytest.raises(UserError, match=r"images: cannot be looked for \(BusyError: 503\)"):
        open_source(f"{bucket}/images")
    outage.end()


def test_a_file_that_stays_away_is_tried_for_a_minute_while_others_are_there(bucket, outage):
    source = open_source(f"{bucket}/images")
    assert source.read(1) == PPM
    outage.start("cat_file", BusyError("503"), forever=True, of="0.ppm")
    with pytest.raises(UndecodableImageError, match=r"images/0\.ppm: BusyError: 503"):
        source.read(0)
    assert_waited(outage, 6)
    outage.end()


def test_a_bucket_is_waited_for_while_nothing_in_it_can_be_read(bucket, outage):
    source = open_source(f"{bucket}/images")
    assert source.read(1) == PPM
    outage.ends_after = 400
    outage.start("cat_file", BusyError("503"), forever=True)
    assert source.read(0) == PPM
    assert 400 < sum(outage.slept) <= 432


def test_a_run_whose_bucket_stays_away_may_go_on_later(bucket, outage):
    """Its images are not taken for damaged."""
    source = open_source(f"{bucket}/images")
    assert source.read(1) == PPM
    outage.start("cat_file", BusyError("503"), forever=True)
    with pytest.raises(patience.AwayError, match="503; nor could what was read before") as error:
        source.read(0)
    assert error.value.exit_code == 75
    assert 15 * 60 < sum(outage.slept) < 16 * 60
    # Nobody else begins to wait, or the process would not end.
    with pytest.raises(patience.AwayError):
        source.read(1)
    assert sum(outage.slept) < 16 * 60
    outage.end()


def test_the_time_of_tries_counts(bucket, outage):
    source = open_source(f"{bucket}/images")
    assert source.read(1) == PPM

    class SlowError(Exception):
        def __init__(self):
            outage.now += 40

    outage.start("cat_file", SlowError, forever=True)
    before = outage.now
    with pytest.raises(patience.AwayError):
        source.read(0)
    assert 15 * 60 < outage.now - before < 18 * 60


def test_a_worker_knows_what_the_run_has_read(bucket, outage, monkeypatch):
    source = open_source(f"{bucket}/images")
    assert source.read(1) == PPM
    known = pickle.loads(pickle.dumps(patience.known()))
    monkeypatch.setattr(patience, "_last_read", {})
    outage.start("cat_file", BusyError("503"), forever=True)
    with pytest.raises(UndecodableImageError):
        source.read(0)
    patience.know(known)
    with pytest.raises(patience.AwayError):
        source.read(0)
    outage.end()


def test_a_bucket_of_which_nothing_was_read_is_tried_for_a_minute(bucket, outage):
    SYSTEM.pipe("/b/x.csv", b"path\n")
    outage.start("cat_file", BusyError("503"), forever=True)
    with pytest.raises(UserError, match=r"x\.csv: cannot be read \(BusyError: 503\)"):
        open_source(f"{bucket}/x.csv")
    assert_waited(outage, 6)
    outage.end()


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("x"),
        PermissionError("x"),
        OSError(errno.ENOSPC, "no space"),
        OSError("Forbidden: b/x\nno storage.objects.get access"),  # gcsfs
        HttpError(401),
        HttpError(410),
        NoCredentialsError("who asks?"),
    ],
)
def test_what_another_try_does_not_mend_is_told_at_once(error, bucket, outage, capsys):
    outage.start("get_file", error, forever=True)
    with pytest.raises(UserError, match="cannot be copied"):
        open_source(f"{bucket}/x.array_record")
    assert outage.calls == 1
    assert not outage.slept
    assert "tried again" not in capsys.readouterr().err


def test_an_image_that_could_not_be_read_is_named_without_another_try(bucket, outage, capsys):
    source = open_source(f"{bucket}/images")
    batch = {"failed": np.array([-1, 1]), "reason": np.array(["", "BusyError: 503"])}
    outage.start("cat_file", BusyError("503"), forever=True)
    failed = FailedImages(source, records=[])
    failed.note(batch)
    failed.share()
    assert capsys.readouterr().out == f"skipped {bucket}/images/1.ppm: BusyError: 503\n"
    assert not outage.calls


class Mount:
    """Local files that can't be read for some tries."""

    def __init__(self, monkeypatch):
        self.left, self.number, self.of = 0, errno.ESTALE, ""
        # The one is of what is read, the other of what was read before.
        for module, name in ((files, "open_regular"), (patience, "open_regular")):
            works = functools.partial(self._try, getattr(module, name))
            monkeypatch.setattr(module, name, works)

    def _try(self, works, path, **keywords):
        if self.left and path.endswith(self.of):
            self.left -= 1
            raise OSError(self.number, os.strerror(self.number), path)
        return works(path, **keywords)


@pytest.fixture
def mount(tmp_path, monkeypatch):
    for name in ("0.ppm", "1.ppm"):
        (tmp_path / name).write_bytes(PPM)
    return Mount(monkeypatch)


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.ENOTCONN, errno.EMFILE])
def test_a_local_file_is_read_when_its_file_system_is_back(number, mount, outage, tmp_path, capsys):
    source = open_source(str(tmp_path))
    mount.left, mount.number = 3, number
    assert source.read(0) == PPM
    assert_waited(outage, 3)
    assert f"{tmp_path}/0.ppm: {os.strerror(number)}; reads that" in capsys.readouterr().err


def test_a_run_whose_file_system_stays_away_may_go_on_later(mount, outage, tmp_path):
    source = open_source(str(tmp_path))
    assert source.read(1) == PPM
    mount.left = 1000
    with pytest.raises(patience.AwayError, match="Stale file handle; nor could what was read"):
        source.read(0)
    outage.is_over, mount.of = False, "0.ppm"
    with pytest.raises(UndecodableImageError, match=r"0\.ppm: Stale file handle"):
        source.read(0)
    assert source.read(1) == PPM


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.EFBIG, errno.EINVAL])
def test_what_another_try_does_not_mend_of_a_local_file(number, mount, outage, tmp_path):
    source = open_source(str(tmp_path))
    mount.left, mount.number = 1, number
    with pytest.raises(UndecodableImageError, match=os.strerror(number)):
        source.read(0)
    assert not outage.slept


_WAITS_WHILE_IT_ENDS = """
import errno, threading
from must_jax import main
from must_jax.data import patience
from must_jax.errors import UserError

began = threading.Event()

def read():
    began.set()
    raise OSError(errno.EIO, "away")

def command(argv):
    threading.Thread(target=patience.patiently, args=("memory://bucket/image", read)).start()
    began.wait()
    print("ends", flush=True)
    raise UserError("something else")

main.run(command)
"""


@pytest.mark.multiprocess
def test_the_end_of_the_process_waits_for_no_outage():
    process = subprocess.Popen(
        [sys.executable, "-c", _WAITS_WHILE_IT_ENDS, "--config=configs/tiny.py", "--workdir=w"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=pathlib.Path(__file__).parents[1],
    )
    with process:
        assert process.stdout.readline() == "ends\n"
        # Its waits for a bucket are half a minute in all, or more.
        assert process.wait(timeout=15) == 2
