"""ArrayRecord files that say of themselves what a test likes, with hashes that are right."""

import struct

import pyarrow as pa

_BLOCK = 2**16
_WORD = 2**64 - 1
# HighwayHash's own numbers, and Riegeli's key.
_FIRST = struct.unpack(
    ">8Q",
    bytes.fromhex(
        "dbe6d5d5fe4cce2f a4093822299f31d0 13198a2e03707344 243f6a8885a308d3"
        "3bd39e10cb0ef593 c0acf169b5f18a8c be5466cf34e90c6c 452821e638d01377"
    ),
)
_KEY = struct.unpack("<4Q", b"Riegeli/records\n" * 2)
_ZIPPER = ((3, 12, 2, 5, 14, 1, 15, 0), (11, 4, 10, 13, 9, 6, 8, 7))


def _swapped(word):
    return (word >> 32 | word << 32) & _WORD


class _Hash:
    def __init__(self):
        self.m0, self.m1 = list(_FIRST[:4]), list(_FIRST[4:])
        self.v0 = [a ^ k for a, k in zip(self.m0, _KEY, strict=True)]
        self.v1 = [a ^ _swapped(k) for a, k in zip(self.m1, _KEY, strict=True)]

    def update(self, packet):
        for i, lane in enumerate(struct.unpack("<4Q", packet)):
            self.v1[i] = (self.v1[i] + self.m0[i] + lane) & _WORD
            self.m0[i] ^= (self.v1[i] & 0xFFFFFFFF) * (self.v0[i] >> 32)
            self.v0[i] = (self.v0[i] + self.m1[i]) & _WORD
            self.m1[i] ^= (self.v0[i] & 0xFFFFFFFF) * (self.v1[i] >> 32)
        for source, target in ((self.v1, self.v0), (self.v0, self.v1)):
            for i in (0, 2):
                pair = struct.pack("<2Q", *source[i : i + 2])
                for j, order in enumerate(_ZIPPER, i):
                    mixed = int.from_bytes(bytes(pair[k] for k in order), "little")
                    target[j] = (target[j] + mixed) & _WORD


def highway_hash(data):
    """HighwayHash of 64 bits, under Riegeli's key."""
    state = _Hash()
    whole = len(data) // 32 * 32
    for i in range(0, whole, 32):
        state.update(data[i : i + 32])
    if rest := data[whole:]:
        count = len(rest)

        def rotated(half):
            return (half << count | half >> (32 - count)) & 0xFFFFFFFF

        state.v0 = [(word + (count << 32) + count) & _WORD for word in state.v0]
        state.v1 = [rotated(word & 0xFFFFFFFF) | rotated(word >> 32) << 32 for word in state.v1]
        words, odd = rest[: count & ~3], rest[count & ~3 :]
        packet = bytearray(words.ljust(32, b"\0"))
        if count & 16:
            packet[28:] = rest[-4:]
        elif odd:
            packet[16:19] = bytes([odd[0], odd[len(odd) >> 1], odd[-1]])
        state.update(packet)
    for _ in range(4):
        state.update(struct.pack("<4Q", *(_swapped(state.v0[i]) for i in (2, 3, 0, 1))))
    return (state.v0[0] + state.v1[0] + state.m0[0] + state.m1[0]) & _WORD


def varint(number):
    out = b""
    while number >= 128:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def message(*numbers):
    """A protocol buffer whose fields, from 1 on, are integers."""
    return b"".join(varint(i << 3) + varint(number) for i, number in enumerate(numbers, 1))


def chunk(data, *, records, decoded, kind=b"r", data_size=None):
    size = len(data) if data_size is None else data_size
    header = struct.pack("<4Q", size, highway_hash(data), kind[0] | records << 8, decoded)
    return struct.pack("<Q", highway_hash(header)) + header + data


def simple(parts, *, codec=None, **said):
    """A chunk of records, `parts`, compressed or not; `said` is what it says of itself instead."""
    data = [b"".join(varint(len(record)) for record in parts), b"".join(parts)]
    said = {"records": len(parts), "decoded": len(data[1])} | said
    if codec:
        data = [varint(len(one)) + pa.compress(one, codec, asbytes=True) for one in data]
    mark = codec[:1].encode() if codec else b"\0"
    return chunk(mark + varint(len(data[0])) + data[0] + data[1], **said)


def footer(starts, counts, *, chunks=None, total=None):
    """The records of a footer; `chunks` and `total` are what it says of itself instead."""
    chunks = len(starts) if chunks is None else chunks
    metadata = message(1, chunks, sum(counts) if total is None else total)
    metadata += varint(4 << 3 | 2) + varint(13) + b"group_size:1,"
    entries = [message(*entry) for entry in zip(starts, [1] * len(starts), counts, strict=True)]
    return [varint(1 << 3 | 2) + varint(len(metadata)) + metadata, *entries]


def file(chunks, make_footer):
    """A file of chunks; `make_footer` makes the footer's chunk of the places where they start."""
    out = bytearray()
    _add(out, chunk(b"", kind=b"s", records=0, decoded=0))
    starts = [_add(out, one) for one in chunks]
    end = _add(out, make_footer(starts))
    _pad(out)
    _add(out, simple([message(end, 0x71930E704FDAE05E)] * 3))
    _pad(out)
    return bytes(out)


def _add(out, data):
    start, end, left = len(out), len(out), len(data)
    while left:
        end += 24 if end % _BLOCK == 0 else 0
        part = min(_BLOCK - end % _BLOCK, left)
        end, left = end + part, left - part
    while data:
        if len(out) % _BLOCK == 0:
            header = struct.pack("<2Q", len(out) - start, end - len(out))
            out += struct.pack("<Q", highway_hash(header)) + header
        part = _BLOCK - len(out) % _BLOCK
        out += data[:part]
        data = data[part:]
    return start


def _pad(out):
    left = -len(out) % _BLOCK
    assert left >= 40
    _add(out, chunk(bytes(left - 40), kind=b"p", records=0, decoded=0))
