"""Stores of tensorstore's OCDBT format that take far more memory than their files have bytes."""

import shutil
import struct

import tensorstore

_TABLE = []
for _byte in range(256):
    for _ in range(8):
        _byte = _byte >> 1 ^ (0x82F63B78 if _byte & 1 else 0)
    _TABLE.append(_byte)


def add_meeting_branches(state, *, ways):
    """Adds names to a store, a number that grows as a power of `ways`; returns how many.

    It is made anew without compression, with many levels. From each of those added, `ways` lead to
    the one level below.
    """
    _rewrite(state, config={"compression": None, "max_decoded_node_bytes": 200})
    base = tensorstore.KvStore.open(f"file://{state}/").result()
    version = tensorstore.ocdbt.dump(base).result()["versions"][-1]
    location, height = version["root"]["location"], version["root_height"]
    root = tensorstore.ocdbt.dump(base, location).result()
    name, start, size = _place(location)
    file = state / name
    nodes = file.read_bytes()

    def append(node):
        nonlocal nodes
        nodes += node
        return len(nodes) - len(node), len(node)

    # A leaf of one empty name with an empty value.
    below = append(_framed(_NODE, bytes([0, 0, 1, 0, 0, 0])))
    for level in range(1, height):
        first = [(b"", 0, *below)]
        others = [(bytes([level, way]), 2, *below) for way in range(1, ways)]
        below = append(_interior(level, name, first + others))
    entries = [
        (entry["key"], len(entry["subtree_common_prefix"]), *_place(entry["location"])[1:])
        for entry in root["entries"]
    ]
    place = append(_interior(height, name, [*entries, (b"zz", 2, *below)]))
    file.write_bytes(nodes)

    manifest = (state / "manifest.ocdbt").read_bytes()
    body = manifest[14:-4]
    for before, after in zip((start, size), place, strict=True):
        head, _, tail = body.rpartition(_varint(before))
        body = head + _varint(after) + tail
    (state / "manifest.ocdbt").write_bytes(_framed(manifest[:4], body))
    return ways ** (height - 1)


def add_zeros(state, *, mebibytes):
    """Has the names of a store, and as many more, lie in one node with values of a MiB of zeros."""
    config = {"max_inline_value_bytes": 2**20, "max_decoded_node_bytes": 2**31 - 1}
    zeros = dict.fromkeys((b"zeros%05d" % number for number in range(mebibytes)), bytes(2**20))
    _rewrite(state, config=config, more=zeros)


def _rewrite(state, *, config, more=()):
    """Writes a store anew, all at once."""
    store = {"driver": "ocdbt", "base": f"file://{state}/"}
    old = tensorstore.KvStore.open(store).result()
    content = {key: old[key] for key in old.list().result()} | dict(more)
    for folder in (state / "d", *state.glob("ocdbt.*")):
        shutil.rmtree(folder)
    (state / "manifest.ocdbt").unlink()
    transaction = tensorstore.Transaction(atomic=False)
    new = tensorstore.KvStore.open(store | {"config": config}).result()
    for key, value in content.items():
        new.with_transaction(transaction)[key] = value
    transaction.commit_sync()


_NODE = bytes.fromhex("0cdb20de")


def _place(location):
    *_, name, start, size = location.split(":")
    return name, int(start), int(size)


def _interior(height, name, entries):
    """A node that leads to others, all of them in one file: (key, prefix, start, size)."""
    keys, prefixes, starts, sizes = zip(*entries, strict=True)
    count = len(entries)
    file = [_varints([1, len(name), 0]), name.encode()]
    lengths = [_varints(part) for part in ([count], [0] * (count - 1), map(len, keys), prefixes)]
    places = [_varints(part) for part in ([0] * count, starts, sizes)]
    statistics = bytes([1] * count + [1] * count + [0] * count)
    return _framed(_NODE, b"".join([bytes([height]), *file, *lengths, *keys, *places, statistics]))


def _framed(magic, body):
    content = magic + struct.pack("<Q", len(body) + 18) + b"\0\0" + body
    return content + struct.pack("<I", _crc32c(content))


def _crc32c(content):
    value = 0xFFFFFFFF
    for byte in content:
        value = _TABLE[(value ^ byte) & 255] ^ value >> 8
    return value ^ 0xFFFFFFFF


def _varints(numbers):
    return b"".join(map(_varint, numbers))


def _varint(number):
    groups = []
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    return bytes([*groups, number])
