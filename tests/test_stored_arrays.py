"""The store of a converted checkpoint's arrays, made anew by one who means harm."""

import hashlib
import json
import random
import resource
import shutil

import numpy as np
import pyarrow as pa
import pytest
import tensorstore
from clip_checkpoints import TINY, assert_same_trees, edit_json, make_clip, save_clip
from forged_stores import add_meeting_branches, add_zeros

from must_jax.convert import convert, load_converted
from must_jax.convert.zstd_frames import unpacked_bytes
from must_jax.errors import UserError


def store_anew(
    target, name, *, shape=(64, 48), chunk=(64, 48), codecs=(), dtype="float32", value=1
):
    """Stores an array of equal numbers, or its first element alone where it is larger."""
    codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, *codecs]
    grid = {"name": "regular", "configuration": {"chunk_shape": chunk}}
    array = tensorstore.open(
        {
            "driver": "zarr3",
            "kvstore": {
                "driver": "ocdbt",
                "base": {"driver": "file", "path": f"{target}/params/state/"},
                "path": f"{name}/",
            },
            "metadata": {"shape": shape, "chunk_grid": grid, "codecs": codecs, "data_type": dtype},
            "create": True,
            "delete_existing": True,
        }
    ).result()
    (array if array.size == 64 * 48 else array[:1, :1]).write(value).result()


def renew_digests(target):
    """As one who forges a checkpoint does."""
    names = [file.relative_to(target).as_posix() for file in target.rglob("*") if file.is_file()]
    digests = {
        name: hashlib.sha256((target / name).read_bytes()).hexdigest()
        for name in names
        if name != "clip.json"
    }
    edit_json(target / "clip.json", lambda record: record.update(sha256=digests))


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    convert(save_clip(make_clip(**TINY), folder / "source"), folder / "target")
    return folder / "target"


@pytest.fixture
def target(converted, tmp_path):
    return shutil.copytree(converted, tmp_path / "target")


BLOSC = {
    "name": "blosc",
    "configuration": {
        "cname": "zstd",
        "clevel": 1,
        "shuffle": "noshuffle",
        "typesize": 4,
        "blocksize": 0,
    },
}
ZSTD = {"name": "zstd", "configuration": {"level": 1}}


@pytest.mark.parametrize(
    ("name", "stored", "told"),
    [
        (
            "text.proj",
            {"shape": (2**40, 48)},
            "1 parameters do not fit clip.json, such as text.proj: (1099511627776, 48), not "
            "(64, 48); convert again",
        ),
        ("text.proj", {"shape": (64, 48, 1), "chunk": (64, 48, 1)}, "(64, 48, 1), not (64, 48)"),
        # A chunk is made whole, of any size, for what little of it is asked for.
        ("text.proj", {"chunk": (64, 4800)}, "params: text.proj is stored in chunks of (64, 4800)"),
        ("text.proj", {"chunk": (1, 1)}, "text.proj is stored in chunks of (1, 1); convert again"),
        ("text.proj", {"codecs": [BLOSC]}, "text.proj is stored by blosc; convert again"),
        ("text.proj", {"codecs": [ZSTD, BLOSC]}, "text.proj is stored by blosc"),
        ("text.proj", {"dtype": "float64"}, "text.proj is stored as float64; convert again"),
    ],
)
def test_arrays_that_are_none_of_the_architecture_are_not_read(name, stored, told, target):
    store_anew(target, name, **stored)
    renew_digests(target)
    with pytest.raises(UserError) as error:
        load_converted(target)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("number", [np.nan, -np.inf])
def test_numbers_that_are_not_finite_are_told(number, target):
    store_anew(target, "text.proj", value=number)
    assert "params: text.proj holds numbers that are not finite; convert" in refusal(target)


def test_what_earlier_versions_wrote_is_read(target):
    for stored in ({"codecs": [ZSTD]}, {"dtype": "float16"}):
        store_anew(target, "text.proj", **stored)
        renew_digests(target)
        proj = load_converted(target)[1]["text"]["proj"]
        assert proj.dtype == np.float32
        np.testing.assert_array_equal(proj, 1)


def test_stores_are_one(target):
    shutil.copytree(target / "params/state", target / "params/pytree")
    renew_digests(target)
    with pytest.raises(UserError, match="params: 2 stores of arrays, not 1; convert again"):
        load_converted(target)
    shutil.rmtree(target / "params/pytree")
    (target / "params/state/manifest.ocdbt").write_bytes(b"x" * 100)
    renew_digests(target)
    with pytest.raises(UserError, match=r"params: damaged \(.*\); convert again$") as error:
        load_converted(target)
    assert "\n" not in str(error.value)


def open_store(target, **config):
    base = {"driver": "file", "path": f"{target}/params/state/"}
    return tensorstore.KvStore.open({"driver": "ocdbt", "base": base, "config": config}).result()


def refusal(target):
    """What is said of a checkpoint whose digests are those of its files, in one line."""
    renew_digests(target)
    with pytest.raises(UserError) as error:
        load_converted(target)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda tree: tree.pop("('text', 'proj')"), "1 parameters do not fit clip.json, such as"),
        (
            lambda tree: tree.update(x={"key_metadata": [{"key": "text"}, {"key": "x"}]}),
            "1 parameters do not fit clip.json, such as text.x, which was added; convert again",
        ),
        (lambda tree: tree.update(x=1), "_METADATA: damaged (TypeError("),
        (lambda tree: tree.update(x={"key_metadata": [{"key": 1}]}), "_METADATA: damaged"),
        (lambda tree: tree.update(x={"key_metadata": [{"key": []}]}), "_METADATA: damaged"),
    ],
)
def test_names_are_those_of_the_architecture(edit, told, target):
    edit_json(target / "params/state/_METADATA", lambda record: edit(record["tree_metadata"]))
    assert told in refusal(target)


def test_an_array_that_the_store_lacks_is_told(target):
    store = open_store(target)
    store.delete_range(tensorstore.KvStore.KeyRange("text.proj/", "text.proj0")).result()
    assert "do not fit clip.json, such as text.proj, which is missing; convert" in refusal(target)


def test_a_description_of_any_length_is_not_parsed(target):
    store = open_store(target)
    told = json.loads(store["text.proj/zarr.json"])
    told["attributes"] = {"x": [0] * 100_000}
    store["text.proj/zarr.json"] = json.dumps(told).encode()
    assert "300,499 bytes tell of text.proj, not 65,536 at most; convert again" in refusal(target)


def test_nodes_that_unpack_to_more_than_all_parameters_are_not_read(target):
    state = target / "params/state"
    size = sum(file.stat().st_size for file in state.rglob("*") if file.is_file())
    add_zeros(state, mebibytes=80)
    assert sum(file.stat().st_size for file in state.rglob("*") if file.is_file()) < 1.1 * size
    assert "params: unpacks to more than 68,978,432 bytes, for 1,869,568 of" in refusal(target)


def test_a_tree_whose_branches_meet_is_not_listed(target):
    """Its names are millions, in a file of kilobytes."""
    params = load_converted(target)[1]
    assert add_meeting_branches(target / "params/state", ways=20) > 3_000_000
    renew_digests(target)
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert_same_trees(load_converted(target)[1], params)
    # KiB; the names alone would be more.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start < 2**17


@pytest.mark.parametrize("level", [1, 19])
@pytest.mark.parametrize("size", [0, 1, 255, 256, 70_000, 2**17, 2**20 + 1])
@pytest.mark.parametrize("kind", [bytes, random.Random(0).randbytes, lambda n: b"ab" * (n // 2)])
def test_frames_tell_what_they_make(kind, size, level, tmp_path):
    content = kind(size)
    frame = pa.Codec("zstd", compression_level=level).compress(content, asbytes=True)
    (tmp_path / "file").write_bytes(b"before" + frame + b"behind" + frame)
    # A block of 128 KiB at most is taken for one of as many.
    most = 2 * (len(content) + 2**17)
    assert 2 * len(content) <= unpacked_bytes(tmp_path / "file", limit=most) <= most


@pytest.mark.parametrize("cut", range(4, 40))
def test_what_only_looks_like_a_frame_makes_little(cut, tmp_path):
    magic = bytes.fromhex("28b52ffd")
    (tmp_path / "file").write_bytes(magic + random.Random(cut).randbytes(cut - 4))
    assert unpacked_bytes(tmp_path / "file", limit=2**20) <= 2**18
    (tmp_path / "file").write_bytes(b"")
    assert unpacked_bytes(tmp_path / "file", limit=2**20) == 0


def test_frames_that_share_their_blocks_are_not_walked_for_ever(tmp_path):
    """Each of 14,000 goes on in the same million of empty blocks."""
    count = 14_000
    frames = [
        b"\x28\xb5\x2f\xfd\0\0" + (9 * after << 3).to_bytes(3, "little")
        for after in reversed(range(count))
    ]
    (tmp_path / "file").write_bytes(b"".join(frames) + bytes(3 * 2**20))
    assert 2**26 < unpacked_bytes(tmp_path / "file", limit=2**26) <= 2**26 + 2**17
