"""Headers of images that would take gigabytes or minutes, and those that may be of any file."""

import io
import struct

import pytest
from PIL import Image, TiffImagePlugin

from must_jax.data.decode import UndecodableImageError, decode_image
from must_jax.data.headers import check_header


def _tiff(order, tags, *, big=False):
    """One directory, of grey pixels of 8 x 8, with tags of these types and bytes."""
    values = {256: 8, 257: 8, 258: 8, 262: 1, 273: 8, 277: 1}
    tags = {tag: (3, value.to_bytes(2, order)) for tag, value in values.items()} | tags
    sizes = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1, 16: 8}
    width = 8 if big else 4
    start = b"II" if order == "little" else b"MM"
    start += (43 if big else 42).to_bytes(2, order)
    start += (8).to_bytes(2, order) + bytes(2) if big else b""
    head, pixels = 2 * width, bytes(64)
    directory = len(tags).to_bytes(8 if big else 2, order)
    behind = head + len(pixels) + len(directory) + len(tags) * (4 + 2 * width) + width
    blob = b""
    for tag, (kind, value) in sorted(tags.items()):
        directory += tag.to_bytes(2, order) + kind.to_bytes(2, order)
        directory += (len(value) // sizes[kind]).to_bytes(width, order)
        if len(value) > width:
            directory += (behind + len(blob)).to_bytes(width, order)
            blob += value
        else:
            directory += value + bytes(width - len(value))
    start += (head + len(pixels)).to_bytes(width, order)
    return start + pixels + directory + bytes(width) + blob


@pytest.mark.parametrize(("order", "big"), [("little", False), ("big", False), ("little", True)])
def test_tiffs_of_many_numbers(order, big):
    def decoded(tags):
        return decode_image(_tiff(order, tags, big=big), name="x.tif").size

    assert decoded({}) == (8, 8)
    many = bytes(300_000)
    # A profile, a description and what nobody reads are no lists of numbers.
    assert decoded({270: (2, many), 700: (1, many), 34675: (7, many)}) == (8, 8)
    for tag, kind in [(273, 1), (273, 2), (324, 7), (320, 1), (258, 5), (274, 4), (339, 3)]:
        with pytest.raises(UndecodableImageError, match=r"^x\.tif: more than 262,144 numbers in"):
            decoded({tag: (kind, many * 8)})


def test_a_tiff_of_many_pieces():
    few, many = ({273: (1, b"\x08" * n), 278: (3, b"\1\0")} for n in (64, 66_000))
    assert decode_image(_tiff("little", few), name="x").size == (8, 8)
    with pytest.raises(UndecodableImageError, match=r"^x: more than 65,536 pieces$"):
        decode_image(_tiff("little", many), name="x")


@pytest.mark.parametrize(("order", "big"), [("little", False), ("big", False), ("little", True)])
def test_a_tiff_of_tiles_larger_than_it(order, big):
    def decoded(*sides, kind=4):
        sizes = {1: 1, 3: 2, 4: 4, 16: 8}
        wide, high = ((kind, side.to_bytes(sizes[kind], order)) for side in sides)
        tags = {259: (3, (8).to_bytes(2, order)), 322: wide, 323: high, 324: (4, b"\0\0\0\x08")}
        decode_image(_tiff(order, tags | {325: (3, b"\0\x40")}, big=big), name="x")

    # The tile itself is none.
    for sides, kind in [((2048, 2048), 3), ((16, 16), 1)]:
        with pytest.raises(UndecodableImageError, match=r"^x: decoder error"):
            decoded(*sides, kind=kind)
    for sides, kind in [((2048, 2064), 3), ((32768, 32768), 4), ((4096, 4096), 16)]:
        with pytest.raises(
            UndecodableImageError, match=r"^x: tiles of [\d,]+ pixels, in a picture of 64$"
        ):
            decoded(*sides, kind=kind)


def test_a_large_tiff_may_be_one_tile():
    sides = {256: 5000, 257: 5000, 322: 8192, 323: 8192}
    check_header(
        _tiff("little", {tag: (3, struct.pack("<H", side)) for tag, side in sides.items()})
    )


def test_camera_data_of_a_tiff_are_not_read(monkeypatch):
    # Its own directory once more, with fractions under a tag that nobody asks for.
    here = (4, (8 + 64).to_bytes(4, "little"))
    data = _tiff("little", {34665: here, 34853: here, 50000: (5, bytes(16))})

    def fail(*_):
        raise AssertionError

    readers = TiffImagePlugin.ImageFileDirectory_v2._load_dispatch
    monkeypatch.setitem(readers, 5, (8, fail))  # fractions
    assert decode_image(data, name="x").size == (8, 8)


def test_exif_of_megabytes_does_not_turn_the_picture():
    exif = Image.Exif()
    exif[0x0112] = 6
    for size, expected in [(1, (9, 14)), (2**22, (14, 9))]:
        exif[0x9286] = bytes(size)
        data = io.BytesIO()
        Image.new("RGB", (14, 9)).save(data, "png", exif=exif)
        assert decode_image(data.getvalue(), name="x").size == expected


def _jpeg_2000(size, *, layers=1, precinct=None, block=4, component=None, tile_style=b""):
    """A picture of one tile and no data; sides of blocks as the logarithms that are stored."""

    def segment(marker, content):
        return marker + struct.pack(">H", 2 + len(content)) + content

    def style(precinct):
        return bytes([0, block, block, 0, 1]) + (b"" if precinct is None else bytes([precinct]))

    picture = struct.pack(">H8IHBBB", 0, size, size, 0, 0, size, size, 0, 0, 1, 7, 1, 1)
    cod = segment(
        b"\xff\x52",
        bytes([precinct is not None, 0]) + struct.pack(">HB", layers, 0) + style(precinct),
    )
    coc = b"" if component is None else segment(b"\xff\x53", b"\0\1" + style(component))
    main = b"\xff\x4f" + segment(b"\xff\x51", picture) + cod + coc
    main += segment(b"\xff\x5c", b"\x40\x40")
    tile = tile_style + b"\xff\x93" + bytes(4096)
    start = segment(b"\xff\x90", struct.pack(">HIBB", 0, 12 + len(tile), 0, 1))
    return main + start + tile + b"\xff\xd9"


def _in_a_box(codestream):
    data = io.BytesIO()
    Image.new("L", (8, 8)).save(data, "jpeg2000")
    before, mark, _ = data.getvalue().partition(b"jp2c")
    return before + mark + codestream


def test_a_jpeg_2000_of_thousands_of_layers_or_of_tiny_blocks():
    cod = _jpeg_2000(8, layers=65535)
    cod = cod[cod.index(b"\xff\x52") :][:14]
    for data, expected in [
        (_jpeg_2000(64, layers=101), "more than 100 quality layers"),
        (_in_a_box(_jpeg_2000(8, layers=65535)), "more than 100 quality layers"),
        (_jpeg_2000(64, tile_style=cod), "more than 100 quality layers"),
        (_jpeg_2000(2048, precinct=0), "4,194,304 code blocks or precincts, in 1 quality layers"),
        (_jpeg_2000(2048, component=0), "4,194,304 code blocks"),
        (_jpeg_2000(2048, layers=100, block=0), "262,144 code blocks .* in 100 quality layers"),
        (_jpeg_2000(8) + b"\xff\x52" + cod[2:] * 9 + cod * 20_000, "more than 16,384 headers of"),
    ]:
        with pytest.raises(UndecodableImageError, match=f"^x: {expected}"):
            decode_image(data, name="x")
    for data in (_jpeg_2000(64, layers=100), _jpeg_2000(64, precinct=0), _in_a_box(_jpeg_2000(8))):
        assert decode_image(data, name="x").mode == "RGB"


@pytest.mark.parametrize(
    "options",
    [
        {"quality_layers": [30, 20, 10, 5, 1], "codeblock_size": (16, 16)},
        {"tile_size": (32, 32), "precinct_size": (32, 32), "progression": "CPRL"},
        {"irreversible": True, "no_jp2": True},
    ],
)
def test_ways_in_which_a_jpeg_2000_is_kept(options):
    data = io.BytesIO()
    bands = [Image.effect_noise((130, 190), 64)] * 3
    Image.merge("RGB", bands).save(data, "jpeg2000", **options)
    assert decode_image(data.getvalue(), name="x").size == (130, 190)
