"""Whole files that are damaged, each in turn and in many ways."""

import shutil


def truncated(data):
    return data[: len(data) // 2]


def emptied(data):
    return b""


def zeroed(data):
    return bytes(len(data))


def flipped(at):
    """One bit of another value, `at` from 0, in the first byte, to 1, in the last."""

    def flip(data):
        place = int(at * (len(data) - 1))
        return data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :] if data else b"\x10"

    return flip


def removed(data):
    return None


def damaged_copies(whole, copy, names, damages):
    """Makes a copy of a folder anew for every damage to each of its files; yields both."""
    for name in names:
        for damage in damages:
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(whole, copy)
            data = damage((whole / name).read_bytes())
            if data is None:
                (copy / name).unlink()
            else:
                (copy / name).write_bytes(data)
            yield name, damage
