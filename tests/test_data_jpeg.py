"""JPEGs' markers: what libjpeg keeps in memory, and what is refused or made smaller for it."""

import io
import struct
import threading
import time

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from must_jax.data import decode
from must_jax.data.decode import UndecodableImageError, decode_image, decode_pixels
from must_jax.data.jpeg import Frame, check_scans, read_frame


def _segment(marker, content):
    return b"\xff" + bytes([marker]) + struct.pack(">H", 2 + len(content)) + content


def _frame(kind, width, height, components):
    parts = b"".join(bytes([number + 1, 0x11, 0]) for number in range(components))
    return _segment(kind, struct.pack(">BHHB", 8, height, width, components) + parts)


def _jpeg(kind=0xC0, *, size=(64, 64), components=3, scans=1, before=b"", data=True):
    """Flat grey. Its codes are a bit each: no change of the mean, and the block's end."""
    tables = _segment(0xDB, bytes(1) + bytes([1]) * 64)
    for table in (0x00, 0x10):
        tables += _segment(0xC4, bytes([table, 1]) + bytes(15) + bytes(1))
    start = b"\xff\xd8" + before + tables + _frame(kind, *size, components)
    blocks = (-(-size[0] // 8)) * (-(-size[1] // 8))
    bits = (1 if kind == 0xC2 else 2) * blocks * components // scans
    last = 0 if kind == 0xC2 else 63
    names = np.arange(1, components + 1).reshape(scans, -1).tolist()
    for scan in names:
        parts = b"".join(bytes([name, 0]) for name in scan)
        start += _segment(0xDA, bytes([len(scan)]) + parts + bytes([0, last, 0]))
        start += bytes(-(-bits // 8)) if data else b""
    return start + b"\xff\xd9"


HELD = [_jpeg(0xC2), _jpeg(0xC2, scans=3), _jpeg(0xC0, scans=3), _jpeg(0xC1, scans=3)]
NOT_HELD = [_jpeg(0xC0), _jpeg(0xC1), _jpeg(0xC0, components=1)]


@pytest.mark.parametrize("data", HELD + NOT_HELD)
def test_frames(data):
    frame = Frame(width=64, height=64, is_held_whole=data in HELD, has_app1=False)
    assert read_frame(data) == frame
    assert simplejpeg.decode_jpeg(data).shape == (64, 64, 3)
    odd = (
        b"\xff\xd0junk\xff\0\xff\xff"  # passed over
        b"\xff\xe0\0\0\xff\xfe\0\1"  # lengths too short for themselves
        b"\xff\xd7"  # no length
        b"\xff\xdc\0\4\0\1" + _segment(0xFE, _frame(0xC0, 8, 8, 1))
    )
    assert read_frame(data[:2] + odd + data[2:]) == frame
    assert simplejpeg.decode_jpeg_header(data[:2] + odd + data[2:], strict=False)[:2] == (64, 64)
    assert read_frame(data[:2] + _segment(0xE1, b"x") + data[2:]).has_app1
    assert not read_frame(data[:2] + _segment(0xFE, b"\xff\xe1\0\2") + data[2:]).has_app1


def test_pillows_files_have_their_frames():
    for options in ({}, {"progressive": True}, {"comment": b"\xff\xc2"}, {"exif": Image.Exif()}):
        data = io.BytesIO()
        Image.new("RGB", (90, 60)).save(data, "jpeg", **options)
        frame = read_frame(data.getvalue())
        assert (frame.width, frame.height) == (90, 60)
        assert frame.is_held_whole == ("progressive" in options)


@pytest.mark.parametrize(
    "data",
    [
        _jpeg()[:30],
        _jpeg()[: _jpeg().index(b"\xff\xda") + 4],
        b"\xff\xd8" * 2,
        b"\xff\xd8\xff\xda\0\x08\1\1\0\0\x3f\0",
        _jpeg(before=_segment(0xC0, b"\x08")),
        _jpeg(before=_frame(0xC2, 8, 8, 3)),
        _jpeg(0xC3),
        _jpeg(0xC9),
        _jpeg(before=_segment(0xFE, b"") * 1000),
        _jpeg(before=b"\xff\xd0" + bytes(1001)),
        _jpeg(before=bytes(1)),
        _jpeg(before=b"\xff\1"),
        _jpeg(before=b"\xff" * 1001),
    ],
    ids=[
        *["cut", "cut-scan", "start", "scan", "short", "two", "lossless", "arithmetic"],
        *["many", "gap", "no-marker", "marker-1", "fill"],
    ],
)
def test_no_frame(data):
    assert read_frame(data) is None


def test_what_is_passed_over_is_so_on_both_ways():
    for before in (
        _segment(0xFE, b"") * 999,
        b"\xff\xd0" + bytes(2000),
        b"\xff" * 2000,
        b"\xff\0" * 500,
    ):
        for read in _decoders(64):
            assert read(_jpeg(before=before)).shape == (64, 64, 3)
    most = (b"\xff" * 1000 + _segment(0xFE, b"")) * 990
    assert read_frame(_jpeg(before=most)) is not None
    assert decode_image(_jpeg(before=most), name="x").size == (64, 64)


def _decoders(side=8):
    def pixels(data):
        return decode_pixels(data, name="x", smallest_side=side)

    return (lambda data: np.asarray(decode_image(data, name="x"))), pixels


@pytest.mark.parametrize("data", HELD)
def test_what_is_held_whole_is_judged_by_its_whole_size(monkeypatch, data):
    of_image, of_pixels = _decoders()
    assert of_image(data).shape == (64, 64, 3)
    assert of_pixels(data).shape == (8, 8, 3)
    monkeypatch.setattr(decode, "LARGE", 64 * 64 - 1)
    # Nothing is gained by the scale: it comes by way of those of which there is one at a time.
    assert of_image(data).shape == of_pixels(data).shape == (32, 32, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for read in (of_image, of_pixels):
        with pytest.raises(UndecodableImageError, match=r"^x: Image size \(4096 pixels\)"):
            read(data)


@pytest.mark.parametrize("data", NOT_HELD)
def test_what_is_not_is_judged_by_what_it_is_decoded_to(monkeypatch, data):
    of_image, of_pixels = _decoders()
    monkeypatch.setattr(decode, "LARGE", 64 * 64 - 1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert of_image(data).shape == (32, 32, 3)
    assert of_pixels(data).shape == (8, 8, 3)


def test_bombs_of_a_few_bytes_are_refused_at_once():
    for data in (
        _jpeg(0xC2, size=(60000, 60000), data=False),
        _jpeg(0xC0, size=(60000, 60000), scans=3, data=False),
    ):
        assert len(data) < 300
        if not read_frame(data).is_held_whole:
            pytest.fail("would take 20 GB")
        for read in _decoders(224):
            with pytest.raises(UndecodableImageError, match="3600000000 pixels"):
                read(data)


@pytest.mark.parametrize("kind", ["png", "held", "baseline"])
def test_so_many_pixels_are_decoded_at_a_time(monkeypatch, kind):
    """Two images at a time have room, and one of more pixels is alone."""
    monkeypatch.setattr(decode, "_in_flight", decode.Budget(2 * 64 * 64))
    monkeypatch.setattr(decode, "_SMALL", 100)
    monkeypatch.setattr(decode, "LARGE", 64 * 64)
    counts, most, images = [], [], []

    def counted(function, size):
        def call(*arguments, **keywords):
            side = size(*arguments, **keywords)
            counts.append(side)
            most.append(list(counts))
            time.sleep(0.005)
            counts.remove(side)
            return function(*arguments, **keywords)

        return call

    def sized(_, *, min_height, min_width, buffer):
        return 64 if kind == "held" else min_height

    monkeypatch.setattr(decode, "to_8_bits", counted(decode.to_8_bits, lambda i: i.width))
    monkeypatch.setattr(simplejpeg, "decode_jpeg", counted(simplejpeg.decode_jpeg, sized))

    def encoded(side):
        if kind == "held":
            return _jpeg(0xC2, size=(side, side))
        data = io.BytesIO()
        Image.new("RGB", (side, side)).save(data, "png" if kind == "png" else "jpeg")
        return data.getvalue()

    def work():
        for side in (64, 64, 80, 64):
            images.append(_decoders(64)[1](encoded(side)).shape)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(images) == [(40, 40, 3)] * 6 + [(64, 64, 3)] * 18
    assert max(map(len, most)) == 2
    assert [together for together in most if 80 in together] == [[80]] * 6


@pytest.mark.parametrize("kind", [0xC0, 0xC2])
def test_scans_are_counted_in_the_picture_alone(kind):
    """Phones put a video behind it, in which anything may look like a scan."""
    whole = _jpeg(kind, data=True)
    video = np.random.default_rng(0).bytes(10 * 2**20)
    assert video.count(b"\xff\xda") > 100
    expected = decode_pixels(whole, name="x", smallest_side=8)
    np.testing.assert_array_equal(decode_pixels(whole + video, name="x", smallest_side=8), expected)
    start = whole.index(b"\xff\xda")
    scan = whole[start:-2]
    comment, restart = _segment(0xFE, b"\xff\xd9"), b"\xff\xd0"
    for between in (b"", comment, restart, b"junk", b"\xff\x05", b"\xff\xff"):
        many = whole[:start] + (scan + between) * 101 + b"\xff\xd9"
        with pytest.raises(UndecodableImageError, match="more than 100 scans"):
            decode_pixels(many, name="x", smallest_side=8)
    check_scans(whole[:start] + (scan + comment) * 100 + b"\xff\xd9" + scan)
    with pytest.raises(ValueError, match="more than 10,000 segments"):
        check_scans(whole[:start] + comment * 20_000 + scan * 101)
