"""Pickles that would run something, and the archives that they come in."""

import os
import pickle
import zipfile
from collections import OrderedDict


def write_archive(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


class _Reduce:
    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


class _Build:
    """Rebuilt as an admitted object, on which the pickle then sets a forbidden one's attributes."""

    def __init__(self, state):
        self.state = state

    def __reduce__(self):
        return OrderedDict, (), self.state


def hostile(marker):
    """Pickles that would leave a file at `marker`, and the names to refuse them by."""
    command = f"touch {marker}"
    code = f"open({str(marker)!r}, 'w')"
    raw = command.encode()
    system = os.system.__module__ + ".system"
    return {
        "os.system": (pickle.dumps(_Reduce(os.system, command), 2), system),
        "eval": (pickle.dumps(_Reduce(eval, code), 2), "__builtin__.eval"),
        "exec": (pickle.dumps({"a.weight": _Reduce(exec, code)}, 2), "__builtin__.exec"),
        "stack_global": (pickle.dumps(_Reduce(os.system, command), 4), system),
        "nested": (pickle.dumps(OrderedDict(state_dict=_Reduce(os.system, command)), 2), system),
        "getattr": (
            pickle.dumps(_Reduce(getattr, _Reduce(eval, code), "x"), 4),
            "builtins.getattr",
        ),
        "in_state": (pickle.dumps(_Build({"x": _Reduce(eval, code)}), 4), "builtins.eval"),
        "inst": (b"(S'" + raw + b"'\nios\nsystem\n.", "os.system"),
        "obj": (b"(cos\nsystem\nS'" + raw + b"'\no.", "os.system"),
        "torch_load": (b"ctorch.serialization\nload\n(S'x'\ntR.", "torch.serialization.load"),
        "torch_hub": (b"ctorch\nhub.load\n(S'x'\ntR.", "torch.hub.load"),
        "dotted": (
            b"ctorch._utils\n_rebuild_tensor_v2.__call__.__globals__\n.",
            "torch._utils._rebuild_tensor_v2.__call__.__globals__",
        ),
        "subclass": (
            b"ccollections\nOrderedDict.fromkeys\n(]tR.",
            "collections.OrderedDict.fromkeys",
        ),
        "control": (
            b"\x80\x04\x8c\x03a\nb\x8c\x06\x1b[31mc\x93.",
            "a\\nb.\\x1b[31mc",
        ),
        "numpy": (b"cnumpy\nload\n(S'x'\ntR.", "numpy.load"),
        "like_torchscript": (b"c__torch__x\nModule\n)\x81.", "__torch__x.Module"),
    }
