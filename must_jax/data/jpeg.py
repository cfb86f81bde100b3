"""What a JPEG's markers say of it."""

from __future__ import annotations

import dataclasses
import re

START, SCAN, _END = b"\xff\xd8", b"\xff\xda", 0xD9  # of a JPEG, and of each of its scans
MAX_SCANS = 100  # progressive ones have ten or so, and their thumbnails too
# To look through before the pixels, and bytes between two: fewer than Pillow has patience for.
_MOST_SEGMENTS, _LONGEST_GAP = 1000, 1000
_MOST_IN_ALL = 10_000  # segments, where some stand between scans

# Whatever stands before a marker is passed over, as fill bytes are.
_MARKER = re.compile(rb"\xff([^\0\xff])")
# Without restarts, which belong to scans, and what libjpeg may pass over in them.
_MARKER_AFTER_SCAN = re.compile(rb"\xff([\xc0-\xcf\xd9-\xfe])")
_BASELINE, _EXTENDED, _PROGRESSIVE = 0xC0, 0xC1, 0xC2
_KINDS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # of frames; the three are tables
_BARE = {*range(0xD0, 0xD8)}  # without a length
_APP1 = 0xE1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frame:
    """A JPEG's frame.

    Attributes:
        width: Pixels.
        height: Pixels.
        is_held_whole: Whether libjpeg keeps all coefficients while it decodes, two bytes each, at
            their whole number whatever the scale: where they come in more than one scan.
        has_app1: Whether a segment is there that EXIF and XMP tell the orientation in.
    """

    width: int
    height: int
    is_held_whole: bool
    has_app1: bool


def check_scans(data: bytes) -> None:
    """Refuses a JPEG that is decoded hundreds of times over: each scan takes all pixels' time.

    Raises:
        ValueError: It has more than `MAX_SCANS`, or thousands of segments.
    """
    # There may be far more by chance in what follows a picture, such as the video of a phone's.
    if not data.startswith(START) or data.count(SCAN) <= MAX_SCANS:
        return
    scans, at = 0, len(START)
    for _ in range(_MOST_IN_ALL):
        found = _MARKER_AFTER_SCAN.search(data, at)
        if found is None or found[1][0] == _END:
            return
        scans += found[0] == SCAN
        if scans > MAX_SCANS:
            raise ValueError(f"more than {MAX_SCANS} scans")
        at = found.end()
        at += max(2, int.from_bytes(data[at : at + 2], "big"))
    raise ValueError(f"more than {_MOST_IN_ALL:,} segments")


def read_frame(data: bytes) -> Frame | None:
    """Goes through a JPEG's markers up to its first scan, as libjpeg does.

    Returns:
        Its frame; None for one of a seldom kind (lossless, arithmetic), with hundreds of segments
        or of bytes between two, or that libjpeg or Pillow refuses. Of what they refuse there may be
        a frame as well.
    """
    kind, frame, has_app1 = None, b"", False
    at = len(START)
    if data[at : at + 1] != b"\xff":
        return None
    for _ in range(_MOST_SEGMENTS):
        found = _MARKER.search(data, at)
        if found is None or found.start() - at > _LONGEST_GAP:
            return None
        marker, at = found[1][0], found.end()
        if marker < min(_KINDS):
            return None
        if marker in _BARE:
            continue
        length = int.from_bytes(data[at : at + 2], "big")
        if marker in _KINDS:
            if kind is not None:
                return None
            kind, frame = marker, data[at + 2 : at + length]
        elif marker == SCAN[1]:
            break
        has_app1 |= marker == _APP1
        # A length includes its own two bytes, which are read whatever it is.
        at += max(2, length)
    else:
        return None
    if kind not in (_BASELINE, _EXTENDED, _PROGRESSIVE) or len(frame) < 6 or at + 2 >= len(data):
        return None
    return Frame(
        height=int.from_bytes(frame[1:3], "big"),
        width=int.from_bytes(frame[3:5], "big"),
        # The first scan's components, of all.
        is_held_whole=kind == _PROGRESSIVE or data[at + 2] < frame[5],
        has_app1=has_app1,
    )
