"""PyTorch archives of a few kilobytes that would copy, hash or read without end."""

import pickle
import struct
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hostile_pickles import write_archive

from must_jax.convert.torch_archive import open_torch_archive
from must_jax.errors import UserError

MANY = 400_000  # memo references, each an instruction
STORAGE = (
    b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x01tQ"  # of one number
)
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"K\0))tR"


def text(content):
    return b"X" + struct.pack("<I", len(content)) + content.encode()


def refused(pickled, tmp_path, *, match):
    path = tmp_path / "a.pt"
    write_archive(path, {"a/data.pkl": pickled, "a/data/0": bytes(4)})
    with pytest.raises(UserError, match=match) as error:
        open_torch_archive(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def called(count, times):
    """An OrderedDict of as many pairs, made so many times of one list."""
    pairs = b"".join(b"J" + struct.pack("<i", i) + b"N\x86" for i in range(count))
    made = b"h\1h\0R0" * times
    return b"\x80\2(" + pairs + b"l\x85q\x000ccollections\nOrderedDict\nq\x010" + made + b"N."


def built(count, times):
    """As many objects that all get the attributes of one dictionary."""
    state = b"".join(text(f"{i}") + b"N" for i in range(count))
    objects = b"h\1)\x81h\0b0" * times
    return b"\x80\2}(" + state + b"uq\x000c__torch__\nA\nq\x010" + objects + b"N."


def arguments(count, times):
    """Calls of one tuple's values."""
    calls = b"h\1h\0R0" * times
    return b"\x80\2(" + b"N" * count + b"tq\x000ctorch\nSize\nq\x010" + calls + b"N."


@pytest.mark.parametrize("kind", [called, built, arguments])
def test_values_that_are_copied_count_as_often(kind, tmp_path):
    refused(kind(10_000, 200), tmp_path, match="more than 1,000,000 values made or copied")


@pytest.mark.parametrize(
    "key",
    [2**61 - 1, -(2**32), 1.5, ("a", 1), "a" * 1001, b"a" * 1001],
    ids=["hash", "negative", "float", "tuple", "text", "bytes"],
)
def test_keys_are_quick_to_hash_and_to_compare(key, tmp_path):
    refused(pickle.dumps({"a": {key: None}}, 4), tmp_path, match="key .+ of a dictionary")


def test_a_tuple_is_not_hashed_again_and_again(tmp_path):
    keys = b"h\0N" * 10
    refused(b"\x80\2(" + b"N" * MANY + b"tq\x000}(" + keys + b"u.", tmp_path, match="key .+ of a d")


@pytest.mark.parity
def test_a_training_checkpoint_has_keys_of_several_kinds(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    whole = {
        "epoch": 3,
        "name": "run",
        "state_dict": OrderedDict(model.state_dict()),
        "optimizer": optimizer.state_dict(),
        "more": {None: 1, True: 2, -1: 3},
    }
    assert 0 in whole["optimizer"]["state"]
    torch.save(whole, tmp_path / "a.pt")
    tensors = open_torch_archive(tmp_path / "a.pt")
    assert list(tensors) == list(model.state_dict())
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(tensors[name], tensor.numpy())


def test_a_module_in_many_places_counts_as_often(tmp_path):
    names = b"".join(text(f"{i}") + b"h\0" for i in range(1_000))
    places = b"".join(text(f"{i}") + b"h\1" for i in range(300))
    module, root = (b"c__torch__\nA\n)\x81}(" + each + b"ub" for each in (names, places))
    pickled = b"\x80\2" + TENSOR + b"q\x000" + module + b"q\x010" + root + b"."
    refused(pickled, tmp_path, match="modules of more than 200,000 attributes, or in themselves")


def test_no_tensor_is_lost_for_the_length_of_its_name(tmp_path):
    def nested(names):
        module = TENSOR
        for name in names:
            module = b"c__torch__\nA\n)\x81}" + text(name) + module + b"sb"
        return b"\x80\2" + module + b"."

    path = tmp_path / "short.pt"
    write_archive(path, {"a/data.pkl": nested(["c", "b", "a"]), "a/data/0": bytes(4)})
    assert list(open_torch_archive(path)) == ["a.b.c"]
    refused(nested(["a" * 100] * 11), tmp_path, match="a tensor's name of more than 1,000 letters")


def test_a_storages_name_is_short(tmp_path):
    tensor = TENSOR.replace(b"X\x01\0\0\x000", text("0" * 1001))
    pickled = b"\x80\2}" + text("a") + tensor + b"s."
    refused(pickled, tmp_path, match="a storage's name of 1001 letters")


def in_turn(count, path):
    """As many tensors of a number each, which lie in two storages of a MiB."""
    storages = torch.arange(2**18) + 0.0, torch.arange(2**18) + 0.5
    torch.save({f"{i}": storages[i % 2][i : i + 1] for i in range(count)}, path)
    return open_torch_archive(path)


def test_storages_in_turn_are_not_read_without_end(tmp_path):
    tensors = in_turn(80, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"a\.pt: its tensors lie such that it would be read 32"):
        list(map(np.asarray, tensors.values()))


def test_slices_and_storages_that_a_few_share_are_read(tmp_path):
    for i, tensor in enumerate(in_turn(40, tmp_path / "a.pt").values()):
        assert np.asarray(tensor).item() == i + (i % 2) / 2
    flat = torch.arange(2**16) + 0.0
    torch.save({f"{i}": flat[i : i + 2] for i in range(300)}, tmp_path / "flat.pt")
    for i, tensor in enumerate(open_torch_archive(tmp_path / "flat.pt").values()):
        np.testing.assert_array_equal(tensor, [i, i + 1])
