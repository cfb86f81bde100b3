"""TIFF and JPEG 2000 files of a few kilobytes that would take gigabytes or minutes, told apart."""

from __future__ import annotations

import itertools
import math
import re
import struct

# Numbers in a TIFF's tags, most of which Pillow reads into lists: where its pieces lie, above all.
MAX_NUMBERS = 2**18
_MOST_ENTRIES = 2**20  # that `decode` lets Pillow read
_TEXTS = (1, 2, 7)  # types that stay bytes, but for the tags of which each byte is a number
_COLOUR_MAP, _STRIPS, _TILES = 320, 273, 324
_SIDES, _TILE_SIDES = (256, 257), (322, 323)  # tags with the width and the height
_INTEGERS = {1: 1, 6: 1, 3: 2, 8: 2, 4: 4, 9: 4, 16: 8, 17: 8}  # types, and their bytes
# Pixels of a tile, unless the picture is nearly as large: libtiff makes room for one whole.
MAX_TILE = 2**22

MAX_LAYERS = 100  # of a JPEG 2000, as many as scans of a JPEG
# Its precincts or code blocks, of all sizes that it is kept in: a picture of 178 megapixels has
# 700,000 code blocks of 32 x 32. Each is looked at again for each layer.
MAX_BLOCKS = 2**20
MAX_PACKETS = 2**24
_JPEG_2000 = (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")
# Its markers, wherever they are, as each tile may have its own. What must follow them is so narrow
# that chance does not bring it about: one to four components; blocks, filters and precincts.
_SIZE = re.compile(rb"\xff\x51(?=\0[\x29\x2c\x2f\x32]..(.{32})\0([\1-\4]))", re.DOTALL)
_BLOCKS = rb"([\0-\x20][\0-\x08]{2}.[\0\1].{0,33})"
_STYLE = re.compile(
    rb"\xff(?:\x52(?=\0[\x0c-\x2d]([\0-\7]).(..)[\0\1]%b)|\x53(?=\0[\x09-\x2a].([\0\1])%b))"
    % (_BLOCKS, _BLOCKS),
    re.DOTALL,
)
_MOST_SIZES, _MOST_STYLES = 100, 2**14


def check_header(data: bytes) -> None:
    """Refuses an image file whose header asks for more than its pixels are worth.

    Raises:
        ValueError: What it asks for.
    """
    if data[:2] in (b"II", b"MM"):
        _check_tiff(data)
    elif data.startswith(_JPEG_2000):
        _check_jpeg_2000(data)


def _check_tiff(data: bytes) -> None:
    """Adds up the first directory, as Pillow reads it."""

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], "little" if data[:2] == b"II" else "big")

    is_big = data[2:3] == b"\x2b"
    at = number(8, 8) if is_big else number(4, 4)
    width, size, width_of_count = (8, 20, 8) if is_big else (2, 12, 4)
    entries = min(number(at, width), _MOST_ENTRIES)
    found = 0
    sides: dict[int, list[int]] = {}
    for place in range(at + width, min(at + width + entries * size, len(data)), size):
        tag, kind = number(place, 2), number(place + 2, 2)
        count = number(place + 4, width_of_count)
        # A tag that is longer than the file is passed over.
        if count <= len(data) and (kind not in _TEXTS or tag in (_COLOUR_MAP, _STRIPS, _TILES)):
            found += count
        if tag in (*_SIDES, *_TILE_SIDES) and kind in _INTEGERS:
            value, length = place + width_of_count + 4, _INTEGERS[kind]
            if length > width_of_count:
                value = number(value, width_of_count)
            sides.setdefault(tag, []).append(number(value, length))
    if found > MAX_NUMBERS:
        raise ValueError(f"more than {MAX_NUMBERS:,} numbers in its tags")
    # Of a tag that is there twice, readers differ in which they take.
    picture = math.prod(min(sides.get(tag, [0])) for tag in _SIDES)
    tile = math.prod(max(sides.get(tag, [0])) for tag in _TILE_SIDES)
    if tile > max(MAX_TILE, 4 * picture):
        raise ValueError(f"tiles of {tile:,} pixels, in a picture of {picture:,}")


def _check_jpeg_2000(data: bytes) -> None:
    """Counts what OpenJPEG makes room for, and goes through, whether the file has it or not."""
    layers = 0
    sides: dict[int, tuple[int, int]] = {}  # of blocks, by how often the picture was halved; log2
    for style in _few(_STYLE, data, _MOST_STYLES):
        layers = max(layers, int.from_bytes(style[2] or b"", "big"))
        has_precincts = (style[1] or style[4])[0] & 1
        halvings, wide, high, _, _, *precincts = style[3] or style[5]
        for i in range(halvings + 1):
            precinct = precincts[i] if has_precincts and i < len(precincts) else 0xFF
            least = sides.get(halvings - i, (15, 15))
            sides[halvings - i] = (
                min(least[0], wide + 2, precinct & 15),
                min(least[1], high + 2, precinct >> 4),
            )
    if layers > MAX_LAYERS:
        raise ValueError(f"more than {MAX_LAYERS} quality layers")
    for size in _few(_SIZE, data, _MOST_SIZES):
        right, bottom, left, top, wide, high = struct.unpack(">6I8x", size[1])
        width, height = max(1, right - left), max(1, bottom - top)
        wide, high = min(wide, width) or 1, min(high, height) or 1  # a tile
        blocks = sum(
            math.ceil(wide / 2 ** (halved + x)) * math.ceil(high / 2 ** (halved + y))
            for halved, (x, y) in sides.items()
        )
        blocks *= math.ceil(width / wide) * math.ceil(height / high) * size[2][0]
        if blocks > MAX_BLOCKS or blocks * layers > MAX_PACKETS:
            raise ValueError(f"{blocks:,} code blocks or precincts, in {layers} quality layers")


def _few(pattern: re.Pattern[bytes], data: bytes, most: int) -> list[re.Match[bytes]]:
    """All matches of a marker; refuses more than a file has."""
    found = list(itertools.islice(pattern.finditer(data), most + 1))
    if len(found) > most:
        raise ValueError(f"more than {most:,} headers of one kind")
    return found
