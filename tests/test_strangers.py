"""Data sets and workdirs of strangers: no code of theirs is run, no file elsewhere is written."""

import functools
import io
import json
import os
import struct
import tarfile
import zlib

import numpy as np
import pytest
import tfds_data
from PIL import Image

from must_jax.data import files
from must_jax.data.decode import UndecodableImageError, decode_image, decode_pixels
from must_jax.data.local_copies import place_of
from must_jax.data.sources import Classes, ImageFolder
from must_jax.data.sources.source import read_image_file
from must_jax.data.sources.tar_index import members
from must_jax.data.sources.tfds_split import TfdsSplit
from must_jax.errors import UserError
from must_jax.local_files import replace_file
from must_jax.predictions.growing import GrowingFile
from must_jax.workdir_lock import LOCK_FILE, WorkdirLock


@pytest.mark.slow
def test_a_data_set_brings_no_code(tmp_path, monkeypatch):
    path = _prepared(tmp_path) / "features.json"
    changed = json.loads(path.read_text())
    changed["featuresDict"]["features"]["note"]["pythonClassName"] = "evil.Feature"
    path.write_text(json.dumps(changed))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=r"features.json: feature evil.Feature is none of TFDS's"):
        TfdsSplit("shapes", "train", data_dir=str(tmp_path))
    assert not (tmp_path / "ran").exists()


def _prepared(folder):
    builder = tfds_data.write(
        folder,
        {"train": [(b"image", 0)]},
        names={"names": ["a", "b"]},
        file_format="array_record",
    )
    return builder.data_path


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (
            lambda folder: (folder / "label.labels.txt").write_text("a\n"),
            "has 2 classes and 1 names",
        ),
        (lambda folder: _edit(folder / "dataset_info.json", splits=[]), "has no split 'train'"),
        (
            lambda folder: _change(
                folder / "dataset_info.json",
                lambda info: info["splits"][0].update(filepathTemplate="{X}"),
            ),
            "its notes are damaged",
        ),
    ],
)
def test_notes_of_tfds_that_do_not_fit(tmp_path, damage, told):
    damage(_prepared(tmp_path))
    with pytest.raises(UserError, match=told):
        TfdsSplit(
            "shapes",
            "train",
            data_dir=str(tmp_path),
            classes=Classes(["a", "b"]),
            labels="required",
        )


def _change(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def _edit(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_jpeg_of_hundreds_of_scans_is_refused():
    encoded = io.BytesIO()
    Image.new("L", (64, 64)).save(encoded, "JPEG", progressive=True)
    data = encoded.getvalue()
    scan = data[data.rindex(b"\xff\xda") : -2]
    assert decode_pixels(data[:-2] + 50 * scan + data[-2:], name="x", smallest_side=8).shape
    bomb = data[:-2] + 100 * scan + data[-2:]
    for decode in (decode_image, functools.partial(decode_pixels, smallest_side=8)):
        with pytest.raises(UndecodableImageError, match="more than 100 scans"):
            decode(bomb, name="x")


def _encoded(kind):
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, kind)
    return file.getvalue()


JPEG, PNG, GIF = map(_encoded, ("JPEG", "PNG", "GIF"))
_EMPTY = b"\0\0\0\0IDAT" + zlib.crc32(b"IDAT").to_bytes(4)  # a chunk of no bytes
_MANY = 2**21


@pytest.mark.parametrize(
    ("bomb", "few", "reason"),
    [
        pytest.param(lambda n: b"P6\n#" + b"x" * n + b"\n1 1\n255\nabc", 1000, "reads", id="ppm"),
        pytest.param(lambda n: JPEG[:2] + b"\xff" * n + JPEG[2:], 1000, "reads", id="jpeg-fill"),
        # Pillow copies what came before for each: hours in a quarter of a gigabyte.
        pytest.param(
            lambda n: JPEG[:2] + b"\xff\xe1\0\x09Exif\0\0y" * n + JPEG[2:], 99, "EXIF", id="exif"
        ),
        pytest.param(
            lambda n: JPEG[:2] + b"\xff\xfe\0\x03y" * n + JPEG[2:],
            2000,
            "reads",
            id="jpeg-comments",
        ),
        pytest.param(lambda n: PNG[:33] + _EMPTY * (n // 2) + PNG[33:], 1000, "reads", id="png"),
        pytest.param(
            lambda n: GIF[:-1] + b"\x21\xfe\x01a\0" * n + b";", 1000, None, id="gif-behind"
        ),
        pytest.param(
            lambda n: GIF[: GIF.index(b",")] + b"\x21\xfe\x01a\0" * n + GIF[GIF.index(b",") :],
            1000,
            "reads",
            id="gif-comments",
        ),
    ],
)
def test_a_file_of_millions_of_pieces_is_refused(bomb, few, reason):
    for decode in (decode_image, functools.partial(decode_pixels, smallest_side=8)):
        decode(bomb(few), name="x")
        if reason is None:  # the first frame is all that is read
            decode(bomb(_MANY), name="x")
            continue
        with pytest.raises(UndecodableImageError, match=rf"x: .*more than \d+ {reason}"):
            decode(bomb(_MANY), name="x")


def _rle_bmp(width, height, runs):
    """A run-length encoded BMP of grey."""
    palette = b"".join(bytes([i, i, i, 0]) for i in range(256))
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 0)
    start = 14 + len(header) + len(palette)
    return struct.pack("<2sIII", b"BM", start + len(runs), 0, start) + header + palette + runs


def test_a_bmp_whose_runs_are_a_pixel_each_is_read():
    row = b"".join(bytes([1, x % 251]) for x in range(1000)) + b"\0\0"
    bmp = _rle_bmp(1000, 1000, row * 1000)
    image = np.asarray(decode_image(bmp, name="x"))
    np.testing.assert_array_equal(image[:, :, 0], np.tile(np.arange(1000) % 251, (1000, 1)))
    # Steps of no length, without an end.
    with pytest.raises(UndecodableImageError, match="reads"):
        decode_image(_rle_bmp(8, 8, b"\0\2\0\0" * _MANY), name="x")


@pytest.mark.parametrize("key", ["b/../../x", "b/./x", "b//x", "../x", "b/x\0"])
def test_no_copy_of_a_bucket_leaves_the_cache(key):
    with pytest.raises(UserError, match="no copy is made"):
        place_of(f"s3://{key}")
    assert place_of("s3://b/x").endswith("must_jax/s3/b/x")


@pytest.fixture(params=["link", "pipe"])
def trap(request, tmp_path):
    """Puts a link to `tmp_path / "precious"`, or a pipe, in a file's place."""
    (tmp_path / "precious").write_text("precious")
    lay = {"link": lambda path: path.symlink_to(tmp_path / "precious"), "pipe": os.mkfifo}
    yield lay[request.param]
    assert (tmp_path / "precious").read_text() == "precious"


def test_no_file_is_written_through_what_lies_in_its_place(trap, tmp_path):
    trap(tmp_path / "config.json.tmp")
    with pytest.raises(OSError, match=r"config\.json\.tmp"):
        replace_file(tmp_path / "config.json", b"{}")
    for size in (None, 3):
        trap(tmp_path / f"{size}.csv.partial")
        with pytest.raises((OSError, UserError), match=r"csv\.partial|not seekable"):
            GrowingFile(tmp_path / f"{size}.csv", size=size)
    trap(tmp_path / LOCK_FILE)
    with WorkdirLock(str(tmp_path), patience_seconds=0) as lock:
        lock.take()


def test_names_that_no_file_can_have_are_images_that_cannot_be_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in ("/a\0.png", "file:///a\0.png", f"file://{tmp_path}/pipe.png"):
        with pytest.raises(UndecodableImageError):
            read_image_file(files.join(str(tmp_path), path))


def test_links_to_folders_of_links_come_to_an_end(tmp_path):
    for level in range(40):
        (tmp_path / f"{level}").mkdir()
        for name in "ab":
            (tmp_path / f"{level}" / name).symlink_to(tmp_path / f"{level + 1}")
    with pytest.raises(UserError, match="links lead to the same folders more than"):
        ImageFolder(tmp_path)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, b"Z"])
def test_a_tar_member_of_negative_size_is_damage(tmp_path, kind):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
    header = bytearray(packed.getvalue())
    header[124:136] = (2**96 - 512).to_bytes(12, "big")
    header[156:157] = kind
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    with pytest.raises(UserError, match=r"damaged|not an uncompressed tar"):
        list(members(io.BytesIO(bytes(header)), path="loop.tar"))
