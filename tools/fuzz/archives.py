"""Damage to PyTorch archives and safetensors files that keeps to their containers' rules."""

import io
import json
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

from hostile_pickles import hostile

from fuzz.mutations import ODD_VALUES, mutate_bytes, mutate_json

_GIBI = 2**30
_TUPLES = b")" + b"\x86".join([b"2"] * 40) + b"\x86"  # a pair of itself, forty times over


def _tensor(size: bytes, stride: bytes) -> bytes:
    return (
        b"\x80\x02}U\x01actorch._utils\n_rebuild_tensor_v2\n((U\x07storagectorch\nFloatStorage\n"
        b"U\x010U\x03cpuI4\ntQI0\n" + size + stride + b"\x89}tRs."
    )


# Pickles of a few bytes that ask for much memory or much time.
BOMBS: dict[str, bytes] = {
    "memo_index": b"\x80\x02}r" + struct.pack("<I", 2**28) + b".",
    "memo_index_largest": b"\x80\x02}r" + struct.pack("<I", 2**32 - 1) + b".",
    "memo_index_text": b"\x80\x02}p9999999999\n.",
    "bytearray": b"\x80\x05\x96" + struct.pack("<Q", 3 * _GIBI) + b".",
    "bytes": b"\x80\x04\x8e" + struct.pack("<Q", 3 * _GIBI) + b".",
    "text": b"\x80\x04\x8d" + struct.pack("<Q", 3 * _GIBI) + b".",
    "old_text": b"\x80\x02T" + struct.pack("<i", 2**31 - 1) + b".",
    "negative_text": b"\x80\x02T" + struct.pack("<i", -1) + b".",
    "frame": b"\x80\x04\x95" + struct.pack("<Q", 3 * _GIBI) + b"}.",
    "long": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b".",
    "long_text": b"L" + b"9" * 1_000_000 + b"L\n.",
    "lists_in_lists": b"\x80\x02" + b"]" * 500_000 + b"a" * 499_999 + b".",
    "tuples_in_tuples": b"\x80\x02)" + b"\x85" * 500_000 + b".",
    "hash_of_pairs": b"\x80\x02})" + b"2\x86" * 40 + b"Ns.",
    "words_of_pairs": _tensor(b")" + b"2\x86" * 40, b")"),
    "stride_of_pairs": _tensor(b")", b")" + b"2\x86" * 40),
    "key_of_pairs": b"\x80\x02(U\x07storagectorch\nFloatStorage\n)" + b"2\x86" * 40 + b"NI4\ntQ.",
    "axes": _tensor(b"(" + b"I99999999\n" * 20_000 + b"t", b"(" + b"I0\n" * 20_000 + b"t"),
    "modules": b"\x80\x02c__torch__\nM\n)\x81q\x00"
    + b"".join(
        b"c__torch__\nM\n)\x81}(U\x01ah" + bytes([i]) + b"U\x01bh" + bytes([i]) + b"ubq"
        + bytes([i + 1])
        for i in range(40)
    )
    + b".",
    "module_in_itself": b"\x80\x02c__torch__\nM\n)\x81q\x00}U\x01ah\x00sb.",
    "dict_in_itself": b"\x80\x02}q\x00U\x0astate_dicth\x00s.",
    "classes": b"\x80\x02]" + b"c__torch__\nM\n)\x810" * 50_000 + b".",
    "many_empty": b"\x80\x02(" + b"}" * 2_000_000 + b"t.",
    "counted_dict": b"\x80\x02ccollections\nOrderedDict\n(I2000000000\ntR.",
    "no_stop": b"\x80\x02}",
    "extension": b"\x80\x02\x82\x01.",
    "out_of_band": b"\x80\x05\x97\x98.",
}  # fmt: skip


def rewrite_archive(data: bytes, rng: random.Random, canary: Path) -> tuple[bytes, str]:
    """An archive whose entries were changed, with checksums that are right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    (root,) = (name[: -len("data.pkl")] for name in entries if name.endswith("/data.pkl"))
    changes: tuple[Callable[..., str], ...] = (
        _pickle_bytes, _pickle_bytes, _pickle_bytes, _bomb, _hostile, _storage, _entry_name,
        _lost, _packed, _many, _shared, _byteorder,
    )  # fmt: skip
    options: dict[str, int] = {}
    what = rng.choice(changes)(entries, root, rng, canary, options)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content, options.get(name, zipfile.ZIP_STORED))
    return file.getvalue(), what


def _pickle_bytes(entries, root, rng, canary, options) -> str:
    name = f"{root}data.pkl"
    entries[name], what = mutate_bytes(entries[name], rng)
    return f"pickle {what}"


def _bomb(entries, root, rng, canary, options) -> str:
    name = rng.choice(sorted(BOMBS))
    entries[f"{root}data.pkl"] = BOMBS[name]
    entries[f"{root}data/0"] = bytes(64)
    return f"pickle bomb {name}"


def _hostile(entries, root, rng, canary, options) -> str:
    pickles = hostile(canary)
    name = rng.choice(sorted(pickles))
    entries[f"{root}data.pkl"] = pickles[name][0]
    return f"hostile pickle {name}"


def _storage(entries, root, rng, canary, options) -> str:
    name = rng.choice([name for name in entries if name.startswith(f"{root}data/")])
    size = rng.choice((0, 1, len(entries[name]) // 2, len(entries[name]) + 4))
    entries[name] = (entries[name] + bytes(4))[:size]
    return "storage of another size"


def _entry_name(entries, root, rng, canary, options) -> str:
    old = rng.choice(sorted(entries))
    new = rng.choice(
        ("../../escaped", str(canary), "/tmp/escaped", "a\0b", "x/data.pkl", old.upper(), "C:\\x")
    )
    entries[new] = entries.pop(old)
    return f"entry {old[-20:]} named {new[-20:]}"


def _lost(entries, root, rng, canary, options) -> str:
    name = rng.choice(sorted(entries))
    del entries[name]
    return f"no entry {name[-20:]}"


def _packed(entries, root, rng, canary, options) -> str:
    name = rng.choice((f"{root}data.pkl", f"{root}data/0", f"{root}version", f"{root}byteorder"))
    entries[name] = bytes(200 * 2**20)
    options[name] = rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2))
    return f"zip bomb in {name[-10:]}"


def _many(entries, root, rng, canary, options) -> str:
    count = rng.choice((1_000, 30_000))
    entries |= {f"{root}x/{i}": b"" for i in range(count)}
    return f"{count} more entries"


def _shared(entries, root, rng, canary, options) -> str:
    """Thousands of tensors that are one storage: a small file, and a large checkpoint."""
    tensor = _tensor(b"(I512\nI512\nt", b"(I512\nI1\nt").replace(b"I4\n", b"I262144\n")
    tensor = tensor[tensor.index(b"c") : tensor.rindex(b"s")]
    names = [b"visual.transformer.resblocks.%d.x" % i for i in range(20_000)]
    first = b"V" + names[0] + b"\n" + tensor + b"q\x01s"
    rest = b"".join(b"V" + name + b"\nh\x01s" for name in names[1:])
    entries[f"{root}data.pkl"] = b"\x80\x02}" + first + rest + b"."
    entries[f"{root}data/0"] = bytes(4 * 512 * 512)
    return "20000 tensors of one storage"


def _byteorder(entries, root, rng, canary, options) -> str:
    entries[f"{root}byteorder"] = rng.choice((b"", b"big", b"middle", rng.randbytes(1000)))
    return "byteorder"


def pickle_of(value: object, protocol: int) -> bytes:
    """Bytes of a file that is a bare pickle."""
    return pickle.dumps(value, protocol)


def rewrite_safetensors(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """A safetensors file whose header says something else, its length being right or not."""
    (size,) = struct.unpack("<Q", data[:8])
    header, numbers = json.loads(data[8 : 8 + size]), data[8 + size :]
    kind = rng.choice(("json", "json", "field", "field", "field", "length", "metadata", "twice"))
    names = [name for name in header if name != "__metadata__"]
    name = rng.choice(names)
    text = json.dumps(header)
    if kind == "json":
        text, kind = mutate_json(header, rng)
    elif kind == "field":
        field = rng.choice(("dtype", "shape", "data_offsets", "name"))
        types = ("F64", "F32", "F16", "BF16", "I8", "U64", "F8_E4M3", "BOOL", "C64", "F4")
        if field == "name":
            header[rng.choice(("../x", "", "x" * 10_000, "nul\0", "\x1b[2J"))] = header.pop(name)
        elif field == "dtype":
            header[name][field] = rng.choice(types)
        else:
            numbers_of = header[name][field]
            place = rng.randrange(max(1, len(numbers_of)))
            number = rng.choice((0, -1, 1, 3, 2**31, 2**63, 2**64, 1.5, None, "1"))
            header[name][field] = [*numbers_of[:place], number, *numbers_of[place + 1 :]]
        text, kind = json.dumps(header), f"{field} of a tensor"
    elif kind == "metadata":
        header["__metadata__"] = rng.choice(ODD_VALUES)
        text = json.dumps(header)
    elif kind == "twice":
        text = text[:-1] + f", {json.dumps(name)}: {json.dumps(header[name])}}}"
    encoded = text.encode("utf-8", "surrogatepass")
    length = len(encoded)
    if kind == "length":
        length = rng.choice((0, 1, length - 1, length + 1, 10**8, 2**32, 2**63, 2**64 - 1))
    return struct.pack("<Q", length) + encoded + numbers, f"header, {kind}"
