"""The reader of PyTorch archives: bit for bit what torch reads, and nothing but tensors."""

import pickle
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from hostile_pickles import hostile, write_archive

from must_jax.convert.torch_archive import open_torch_archive
from must_jax.errors import UserError

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
INTEGERS = [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64]


def bits(tensor):
    """A tensor's bytes, which also tell apart the NaNs and the zeros."""
    return tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()


def read(path):
    return {name: np.asarray(tensor) for name, tensor in open_torch_archive(path).items()}


def assert_reads(tensors, path):
    torch.save(tensors, path)
    ours = read(path)
    assert list(ours) == list(tensors)
    for name, tensor in tensors.items():
        assert ours[name].shape == tuple(tensor.shape), name
        assert str(ours[name].dtype) == str(tensor.dtype).removeprefix("torch."), name
        assert ours[name].tobytes() == bits(tensor.reshape(-1)), name


@pytest.mark.parity
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_floats_bit_for_bit(dtype, tmp_path):
    values = torch.randn(257).to(dtype)
    special = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45, 6e-8, 65504.0]).to(dtype)
    assert_reads({"a": values, "b": special}, tmp_path / "a.pt")


@pytest.mark.parity
def test_integers_and_booleans(tmp_path):
    tensors = {str(dtype): torch.arange(5).to(dtype) for dtype in INTEGERS}
    tensors["torch.bool"] = torch.tensor([True, False])
    torch.save(tensors, tmp_path / "a.pt")
    for name, ours in read(tmp_path / "a.pt").items():
        np.testing.assert_array_equal(ours, tensors[name].numpy())


@pytest.mark.parity
def test_views_of_every_kind(tmp_path):
    base = torch.randn(4, 6, 5)
    assert_reads(
        {
            "base": base,
            "transposed": base.transpose(0, 2),
            "strided": base[1::2, ::3, 2:],
            "row": base[3, 5],
            "scalar": base[3, 5, 4],
            "also": base.view(20, 6),
            "empty": base[:0],
            "parameter": torch.nn.Parameter(base.mT),
        },
        tmp_path / "a.pt",
    )


def test_views_of_one_storage_cannot_change_each_other(tmp_path):
    base = torch.randn(8)
    torch.save({"a": base, "b": base[2:]}, tmp_path / "a.pt")
    ours = read(tmp_path / "a.pt")
    with pytest.raises(ValueError, match="read-only"):
        ours["a"][:] = 0
    np.testing.assert_array_equal(ours["b"], base[2:].numpy())


def test_a_file_that_was_written_again_is_read_again(tmp_path):
    for value in (1.0, 2.0):
        torch.save({"a": torch.full((3,), value)}, tmp_path / "a.pt")
        np.testing.assert_array_equal(read(tmp_path / "a.pt")["a"], value)


def test_a_storage_that_is_damaged_is_told_where_it_is_read(tmp_path):
    torch.save({"a": torch.arange(300.0)}, tmp_path / "a.pt")
    content = (tmp_path / "a.pt").read_bytes()
    numbers = np.arange(300, dtype="<f4").tobytes()
    assert content.count(numbers) == 1
    (tmp_path / "a.pt").write_bytes(content.replace(numbers, numbers[::-1]))
    tensors = open_torch_archive(tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"a\.pt: cannot be read, or damaged"):
        np.asarray(tensors["a"])


def test_big_endian_storages(tmp_path):
    torch.save({"a": torch.arange(3.0)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    files["a/byteorder"] = b"big"
    files["a/data/0"] = np.arange(3, dtype=">f4").tobytes()
    write_archive(tmp_path / "b.pt", files)
    np.testing.assert_array_equal(open_torch_archive(tmp_path / "b.pt")["a"], [0, 1, 2])


@pytest.mark.parametrize("case", hostile("x"))
def test_hostile_pickles_are_refused_by_name_and_run_nothing(case, tmp_path):
    marker = tmp_path / "ran"
    pickled, name = hostile(marker)[case]
    path = tmp_path / "a.pt"
    write_archive(path, {"a/data.pkl": pickled, "a/version": b"3"})
    with pytest.raises(UserError, match="refused") as error:
        open_torch_archive(path)
    assert f"asks for {name}," in str(error.value)
    assert "\n" not in str(error.value)
    assert not marker.exists()


def test_the_hostile_pickles_would_run(tmp_path):
    """The oracle of the test above: Python's own unpickler does leave the file."""
    for case in ("os.system", "eval", "exec", "nested", "inst", "obj", "stack_global"):
        marker = tmp_path / case
        pickled, _ = hostile(marker)[case]
        pickle.loads(pickled)
        assert marker.exists(), case


def test_names_of_torchscript_classes_become_nothing(tmp_path):
    """Classes below `__torch__` are stand-ins, whatever they are called."""
    marker = tmp_path / "ran"
    pickled = b"c__torch__.os\nsystem\n(S'touch " + str(marker).encode() + b"'\ntR."
    write_archive(tmp_path / "a.pt", {"a/data.pkl": pickled})
    with pytest.raises(UserError):
        open_torch_archive(tmp_path / "a.pt")
    assert not marker.exists()


def test_functions_cannot_be_altered(tmp_path):
    pickled = b"ctorch._utils\n_rebuild_tensor_v2\nN}S'_call'\nI1\ns\x86b."
    write_archive(tmp_path / "a.pt", {"a/data.pkl": pickled})
    with pytest.raises(UserError, match="state set on what has none"):
        open_torch_archive(tmp_path / "a.pt")


def tensor_pickle(size, stride, offset=0, count=4):
    numbers = [b"(" + b"".join(b"L%dL\n" % n for n in x) + b"t" for x in (size, stride)]
    return (
        b"\x80\x02}U\x01actorch._utils\n_rebuild_tensor_v2\n((U\x07storagectorch\nFloatStorage\n"
        b"U\x010U\x03cpuL%dL\ntQL%dL\n" % (count, offset) + b"".join(numbers) + b"\x89}tRs."
    )


@pytest.mark.parametrize(
    "view",
    [
        {"size": (5,), "stride": (1,)},
        {"size": (2, 2), "stride": (3, 1)},
        {"size": (4,), "stride": (1,), "offset": 1},
        {"size": (2,), "stride": (-1,), "offset": 1},
        {"size": (1 << 40,), "stride": (0,)},
        {"size": (2,), "stride": (1, 1)},
        {"size": (4,), "stride": (1,), "count": 9},
    ],
)
def test_a_tensor_that_leaves_its_storage_is_refused(view, tmp_path):
    files = {"a/data.pkl": tensor_pickle((4,), (1,)), "a/data/0": np.arange(4.0, dtype="<f4")}
    write_archive(tmp_path / "good.pt", files)
    np.testing.assert_array_equal(open_torch_archive(tmp_path / "good.pt")["a"], np.arange(4.0))
    write_archive(tmp_path / "bad.pt", files | {"a/data.pkl": tensor_pickle(**view)})
    with pytest.raises(UserError, match="damaged"):
        open_torch_archive(tmp_path / "bad.pt")


@pytest.mark.parametrize("what", ["storage", "tensor"])
def test_a_size_cannot_be_altered_after_its_check(what, tmp_path):
    whole = tensor_pickle((4,), (1,))
    # An object's attributes are set by a dictionary and the instruction "b".
    opcode, field = (b"Q", b"U\x04sizeI99\n") if what == "storage" else (b"tR", b"U\x05shape)")
    assert whole.count(opcode) == 1
    altered = whole.replace(opcode, opcode + b"}" + field + b"sb")
    write_archive(tmp_path / "a.pt", {"a/data.pkl": altered, "a/data/0": bytes(16)})
    with pytest.raises(UserError, match="state set on what has none"):
        open_torch_archive(tmp_path / "a.pt")


def test_damaged_files_are_told_in_one_line(tmp_path):
    torch.save({"a": torch.zeros(300)}, tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    torch.save({"a": torch.zeros(3)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    contents = {
        "empty": b"",
        "cut": whole[: len(whole) // 2],
        "text": b"hello",
        "old": (tmp_path / "old.pt").read_bytes(),
    }
    write_archive(tmp_path / "zip.pt", {"readme": b"hello"})
    write_archive(tmp_path / "garbage.pt", {"a/data.pkl": b"\x80\x02garbage"})
    write_archive(tmp_path / "list.pt", {"a/data.pkl": pickle.dumps([1, 2], 2)})
    write_archive(tmp_path / "no_storage.pt", {"a/data.pkl": tensor_pickle((4,), (1,))})
    for name, content in contents.items():
        (tmp_path / f"{name}.pt").write_bytes(content)
    for name in [*contents, "zip", "garbage", "list", "no_storage", "absent"]:
        path = tmp_path / f"{name}.pt"
        with pytest.raises(UserError) as error:
            open_torch_archive(path)
        assert str(error.value).startswith(str(path))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("entry", ["a/data.pkl", "a/data/0"])
def test_compressed_data_is_refused_unread(entry, tmp_path):
    files = {"a/data.pkl": tensor_pickle((4,), (1,)), "a/data/0": bytes(16)}
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        for name, content in files.items():
            kind = zipfile.ZIP_DEFLATED if name == entry else zipfile.ZIP_STORED
            archive.writestr(name, content, kind)
    with pytest.raises(UserError, match=f"{entry} is compressed"):
        open_torch_archive(tmp_path / "a.pt")


def test_an_encrypted_entry_is_one_line(tmp_path):
    files = {"a/data.pkl": tensor_pickle((4,), (1,)), "a/data/0": bytes(16)}
    write_archive(tmp_path / "a.pt", files)
    content = bytearray((tmp_path / "a.pt").read_bytes())
    # The flags of both headers of the last entry: local "PK34" and central "PK12".
    content[content.rindex(b"PK\x03\x04") + 6] |= 1
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.pt").write_bytes(content)
    tensors = open_torch_archive(tmp_path / "a.pt")
    with pytest.raises(UserError, match="encrypted"):
        np.asarray(tensors["a"])


@pytest.mark.parametrize("kind", ["modules", "names", "hash", "bytes", "axes", "entries"])
def test_a_small_file_asks_for_little(kind, tmp_path):
    """What each of these took: a trillion names, as long a hash, gigabytes; or minutes."""
    twice = b"".join(
        b"c__torch__\nM\n)\x81}(U\x01ah%cU\x01bh%cubq%c" % (i, i, i + 1) for i in range(40)
    )
    pickles = {
        "modules": b"\x80\x02c__torch__\nM\n)\x81q\x00" + twice + b".",
        "names": b"\x80\x02}r" + (2**28).to_bytes(4, "little") + b".",
        "hash": b"\x80\x02})" + b"2\x86" * 60 + b"Ns.",
        "bytes": b"\x80\x05\x96" + (2**34).to_bytes(8, "little") + b".",
        "axes": tensor_pickle((2**40,) * 99, (0,) * 99),
        "entries": b"\x80\x02(" + b"}" * 2_000_000 + b"t.",
    }
    write_archive(tmp_path / "a.pt", {"a/data.pkl": pickles[kind], "a/data/0": bytes(16)})
    start = time.perf_counter()
    tracemalloc.start()
    try:
        with pytest.raises(UserError):
            open_torch_archive(tmp_path / "a.pt")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # A million values of 64 bytes, held twice while the stack grows; tracing slows all by much.
    assert peak < 300e6
    assert time.perf_counter() - start < 30


@pytest.mark.parametrize(("count", "name"), [(70_000, b"a"), (300, b"a" * 60_000)])
def test_a_directory_is_refused_before_it_is_taken_apart(count, name, tmp_path):
    """Entries of a few bytes become objects of hundreds, and their names two strings each."""
    entry = b"PK\x01\x02" + bytes(24) + len(name).to_bytes(2, "little") + bytes(16) + name
    size = count * len(entry)
    # It may say that there is one entry: readers go by its size.
    end = b"PK\x05\x06" + bytes(4) + b"\1\0\1\0" + size.to_bytes(4, "little") + bytes(6)
    (tmp_path / "a.pt").write_bytes(entry * count + end)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="more than 65536 entries in this archive"):
            open_torch_archive(tmp_path / "a.pt")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * size


def test_tensors_that_share_a_storage_are_no_large_checkpoint(tmp_path):
    base = torch.zeros(1000)
    torch.save({f"a{i}": base for i in range(4)}, tmp_path / "few.pt")
    assert len(open_torch_archive(tmp_path / "few.pt")) == 4
    torch.save({f"a{i}": base for i in range(1000)}, tmp_path / "many.pt")
    with pytest.raises(UserError, match=r"would take 4,000,000 bytes, many times its own size"):
        open_torch_archive(tmp_path / "many.pt")
