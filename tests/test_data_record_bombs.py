"""ArrayRecord shards, and TFDS splits, whose few bytes would decode to gigabytes."""

import io
import itertools
import random
import re
import subprocess
import sys

import numpy as np
import pytest
import riegeli_forgery as forgery
import tfds_data
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from must_jax.data.decode import UndecodableImageError
from must_jax.data.sources import open_source
from must_jax.data.sources.array_record_index import ArrayRecordIndex
from must_jax.data.sources.array_record_shard import ArrayRecordShard
from must_jax.data.sources.riegeli_chunk import varints
from must_jax.errors import UserError

BOMB = bytes(300 << 20)
ONES = [1, 1, 1]
INDEX = "must_jax.data.sources.array_record_index"


def _write(path, records, options="group_size:1"):
    writer = ArrayRecordWriter(str(path), options)
    for record in records:
        writer.write(record)
    writer.close()
    return path


def _forge(path, chunks, make_footer):
    path.write_bytes(forgery.file(chunks, make_footer))
    return path


def _honest(counts):
    return lambda starts: forgery.simple(forgery.footer(starts, counts))


def _refusal(path):
    with pytest.raises(UserError) as error:
        open_source(path)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"{path}: ")
    return str(error.value)


@pytest.mark.parametrize("codec", ["zstd", "brotli:1"])
def test_a_record_that_decodes_to_more_than_an_image_may(tmp_path, codec):
    path = _write(tmp_path / "x.array_record", [b"a", BOMB, b"c"], f"group_size:1,{codec}")
    assert path.stat().st_size < 2**18
    source = open_source(path)
    with pytest.raises(UndecodableImageError) as error:
        source.read(1)
    assert error.value.name == f"{path}[1]"
    assert re.fullmatch(
        r"its chunk \(records: 1\) takes 314572808 bytes, decoded from \d+; 268435456 are the most",
        error.value.reason,
    )
    assert [source.read(0), source.read(2)] == [b"a", b"c"]


def test_all_records_that_are_decoded_together_count(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{INDEX}.MAX_IMAGE", 1000)
    records = [b"a" * 492] * 2 + [b"b" * 492, b"b" * 493] + [b"c" * 10] * 2 + [b"d" * 992]
    path = _write(tmp_path / "x.array_record", records, "group_size:2")
    source = open_source(path)
    for i in (2, 3):
        with pytest.raises(
            UndecodableImageError, match=r"records: 2\) takes 1001 .*; write shards "
        ):
            source.read(i)
    assert [source.read(i) for i in (0, 1, 4, 5, 6)] == [*records[:2], *records[4:]]


def test_a_split_of_tfds_with_such_a_record(tmp_path):
    image = io.BytesIO()
    Image.new("RGB", (3, 3)).save(image, "png")
    rows = {"train": [(image.getvalue(), 0)] * 3}
    builder = tfds_data.write(tmp_path, rows, names={"names": ["a"]}, file_format="array_record")
    (path,) = builder.data_path.glob("*.array_record-*")
    good = ArrayRecordShard(str(path))[0]
    _write(path, [good, BOMB, good])
    source = open_source("train[1:]", tfds="shapes", data_dir=str(tmp_path))
    with pytest.raises(
        UndecodableImageError, match=r"^shapes train\[1:\]\[0\]: its chunk .* most$"
    ):
        source.read(0)
    assert source.read(1) == image.getvalue()


def test_transposed_records_are_refused(tmp_path):
    path = _write(tmp_path / "x.array_record", [b"a"] * 3, "group_size:1,transpose")
    assert "write shards without the option transpose" in _refusal(path)
    header = b"\0\0" + forgery.varint(2**30)
    bomb = forgery.chunk(
        b"\0" + forgery.varint(len(header)) + header, records=1, decoded=1, kind=b"t"
    )
    _forge(path, [forgery.simple([b"a"]), bomb], _honest([1, 1]))
    source = open_source(path)
    with pytest.raises(UndecodableImageError, match="its chunk is transposed"):
        source.read(1)
    _forge(path, [forgery.simple([b"a"])], lambda starts: bomb)
    assert "its chunk is transposed" in _refusal(path)


@pytest.mark.multiprocess
def test_what_a_chunk_says_too_little_of_is_not_decoded(tmp_path):
    """The library's part in this, which another version might do otherwise."""
    lies = [
        forgery.simple([BOMB], codec="zstd", decoded=5),
        forgery.simple([b"12345", BOMB], codec="zstd", records=1, decoded=5),
        forgery.simple([b"12345", BOMB], codec="brotli", records=1, decoded=5),
        forgery.simple([b""] * 2**21, codec="zstd"),
        forgery.simple([b"1"], data_size=2**35),
    ]
    path = _forge(tmp_path / "x.array_record", [forgery.simple([b"a"]), *lies], _honest([1] * 6))
    code = f"""
from must_jax.data.decode import UndecodableImageError
from must_jax.data.sources import open_source
def peak():
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return int(line.split()[1]) >> 10
source = open_source({str(path)!r})
source.read(0)
before = peak()
for record in range(1, 6):
    try:
        source.read(record)
        raise SystemExit(f"{{record}} is read")
    except UndecodableImageError as error:
        print(error)
assert peak() - before < 50, peak() - before
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("End of data expected") == 2


def test_snappy_which_decodes_what_its_stream_says(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{INDEX}.MAX_IMAGE", 1000)
    chunks = [
        forgery.simple([b"a" * 980], codec="snappy"),
        forgery.simple([b"12345", bytes(1000)], codec="snappy", records=1, decoded=5),
        forgery.simple([b""] * 1001, codec="snappy", records=1),
        forgery.simple([b"a"], codec="snappy", data_size=2**50),
    ]
    path = _forge(tmp_path / "x.array_record", chunks, _honest([1] * 4))
    source = open_source(path)
    assert source.read(0) == b"a" * 980
    for i, reason in [(1, "takes 1008 bytes"), (2, "takes 1001 bytes"), (3, "Should not pull")]:
        with pytest.raises(UndecodableImageError, match=reason):
            source.read(i)


def _bomb_of_footer(starts):
    entries = forgery.footer(starts, ONES)
    return forgery.simple([*entries[:-1], BOMB], codec="zstd")


def _with_metadata(starts, more):
    metadata, *entries = forgery.footer(starts, ONES)
    inner = metadata[2:] + more
    return [metadata[:1] + forgery.varint(len(inner)) + inner, *entries]


def _sparse(starts):
    return forgery.simple(forgery.footer(starts, ONES), decoded=10, data_size=2**40)


@pytest.mark.parametrize(
    ("make_footer", "expected"),
    [
        (_bomb_of_footer, r"damaged; a footer of 4 entries that decodes to 3\d{8} bytes"),
        (_sparse, "damaged; a footer of 4 entries"),
        (lambda _: forgery.simple([b"1"], records=2**40), "damaged; a footer of 1099511627776 "),
        (lambda _: forgery.simple([b""]), "damaged; its footer says nothing of chunks"),
        (lambda _: forgery.simple([b"\x80" * 12]), "damaged; its footer says nothing of chunks"),
        (lambda s: forgery.simple(forgery.footer(s, ONES, chunks=2**60)), "don't add up"),
        (lambda s: forgery.simple(forgery.footer(s, ONES, total=2**60)), "don't add up"),
        (lambda s: forgery.simple(forgery.footer(s, [0, 0, 1])), "don't add up"),
        (lambda s: forgery.simple(forgery.footer(s, [2, 1, 2])), "don't add up"),
        (lambda s: forgery.simple(forgery.footer(s, [1, 1, 2])), "don't add up"),
        (lambda s: forgery.simple(forgery.footer(s, [2**20] * 3)), "don't add up"),
        (lambda s: forgery.simple(forgery.footer(s[::-1], ONES)), "don't add up"),
        (lambda s: forgery.simple(forgery.footer([*s[:2], 2**40], ONES)), "don't add up"),
        (lambda s: forgery.simple(forgery.footer([*s[:2], 2**63], ONES)), "too large"),
        (
            lambda s: forgery.simple(_with_metadata(s, forgery.message(1, 2**60))),
            "damaged; its footer says nothing of chunks",
        ),
        (
            lambda s: forgery.simple([*forgery.footer(s, ONES)[:-1], forgery.message(1, 2)]),
            "damaged; its footer has entries of other fields",
        ),
        (
            lambda s: forgery.simple(forgery.footer(s, ONES), decoded=9),
            "damaged; its records are not of the sizes",
        ),
        (
            lambda s: forgery.chunk(b"", records=0, decoded=0, kind=b"p"),
            "damaged; no chunk of records at byte",
        ),
    ],
)
def test_a_footer_that_would_lead_astray(tmp_path, make_footer, expected):
    chunks = [forgery.simple([letter]) for letter in (b"a", b"b", b"c")]
    path = _forge(tmp_path / "x.array_record", chunks, make_footer)
    assert re.search(expected, _refusal(path))


def test_a_damaged_footer_is_a_value_error(tmp_path):
    path = _write(tmp_path / "x.array_record", [b"a%d" % i for i in range(9)], "group_size:2")
    whole = path.read_bytes()
    last = len(whole.rstrip(b"\0"))
    places = [i for i in range(last) if whole[i : i + 40].strip(b"\0")]
    draw = random.Random(0)
    outcomes = set()
    for _ in range(1000):
        damaged = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            damaged[draw.choice(places)] = draw.choice([0, 1, 127, 128, 255, draw.randrange(256)])
        path.write_bytes(damaged)
        with path.open("rb") as file:
            try:
                outcomes.add(ArrayRecordIndex(file.fileno()).count)
            except ValueError as error:
                outcomes.add(str(error).split(";")[0])
    assert (
        {9, "damaged"}
        <= outcomes
        <= {9, "damaged", "no ArrayRecord file, or cut short"}
        | {
            "its chunk is transposed",
            "cut short",
        }
    )


@pytest.mark.parametrize(
    "codec", ["uncompressed", "zstd", "zstd:9,window_log:27", "brotli", "snappy"]
)
@pytest.mark.parametrize("group", [1, 16])
def test_what_is_written_otherwise_is_read_as_before(tmp_path, codec, group):
    draw = random.Random(0)
    sizes = [0, 1, 39, 65_400, 65_536, 70_000, 200_000, *(draw.randrange(9000) for _ in range(60))]
    records = [draw.randbytes(size // 2) + bytes(size - size // 2) for size in sizes]
    for extra in ("", ",pad_to_block_boundary"):
        path = _write(tmp_path / "x.array_record", records, f"group_size:{group},{codec}{extra}")
        shard = ArrayRecordShard(str(path))
        assert [shard[i] for i in range(len(shard))] == records
        assert shard[np.int64(3)] == ArrayRecordDataSource(str(path))[3]
        with pytest.raises(ValueError, match="record 67 of a file of 67"):
            shard[67]


def test_footers_of_old_versions_name_no_options(tmp_path):
    def make_footer(starts):
        _, *entries = forgery.footer(starts, ONES)
        metadata = forgery.message(1, 3, 3)
        return forgery.simple([b"\n" + forgery.varint(len(metadata)) + metadata, *entries])

    chunks = [forgery.simple([letter]) for letter in (b"a", b"b", b"c")]
    path = _forge(tmp_path / "x.array_record", chunks, make_footer)
    source = open_source(path)
    assert [source.read(i) for i in range(3)] == [b"a", b"b", b"c"]


def test_headers_at_and_across_the_borders_of_blocks(tmp_path):
    at = set()
    for before in range(-30, 64):
        # The first chunk starts behind the file's, and has 45 bytes beside its record.
        records = [b"a" * (65_536 - before - 64 - 45), b"b" * 100, b"c" * 70_000, b"d"]
        path = _write(tmp_path / "x.array_record", records, "group_size:1,uncompressed")
        shard = ArrayRecordShard(str(path))
        assert [shard[i] for i in range(4)] == records
        at.add(shard._opened.chunks._starts[1] % 65_536)
    assert {0, 65_535, 65_536 - 39, 65_536 - 40} <= at


def test_integers_of_variable_length():
    numbers = [*range(300), *(2**i + j for i, j in itertools.product(range(2, 63), (-1, 0)))]
    data = [forgery.varint(number) for number in numbers]
    values, ends = varints(b"".join(data))
    assert values.tolist() == numbers
    assert ends.tolist() == list(itertools.accumulate(map(len, data)))
    assert [part.tolist() for part in varints(b"")] == [[], []]
    for wrong in (b"\x80", b"\x01\xff", forgery.varint(2**63)):
        with pytest.raises(ValueError, match=r"^damaged; an integer is"):
            varints(wrong)
