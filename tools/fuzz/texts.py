"""Odd configs, names, templates, descriptions and lists, through the command line's own path."""

import io
import json
import math
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl import flags, logging

from fuzz.mutations import ODD_VALUES, make_odd_file, mutate_bytes, mutate_json
from fuzz.text_seeds import whole_files, whole_images
from fuzz.workdirs import be_bound_by_modes, begin_in, make_workdir, open_all
from fuzz.worker import captured
from must_jax import main
from must_jax.errors import MAX_LENGTH
from must_jax.experiment import Experiment, build

REFUSED, BUILT = "refused", "built"

_KINDS = (
    "classes.txt",
    "classes.tsv",
    "classes.json",
    "classes.yaml",
    "templates.txt",
    "templates.json",
    "templates.yaml",
    "descriptions.json",
    "descriptions.yaml",
    "train.csv",
    "train.tsv",
    "train.parquet",
    "config.py",
    "config.json",
    "field",
    "path",
    "number",
    "workdir",
)
_FILES_OF = {"train": "train", "class_names": "classes", "templates": "templates"}
_OF_FIELDS = ("config.py", "config.json", "field", "path", "number")
# Texts that break what reads line by line, formats, escapes or nests.
ODD_TEXTS: dict[str, bytes] = {
    "nothing": b"",
    "blank": b" \n\t\r\n \n",
    "bom": b"\xef\xbb\xbfcircle\nsquare\nstar\n",
    "utf16": "circle\nsquare\n".encode("utf-16"),
    "latin1": "cercle\ncarr\xe9\n".encode("latin-1"),
    "crlf": b"circle\r\nsquare\r\nstar\r\n",
    "cr": b"circle\rsquare\rstar",
    "nul": b"cir\0cle\nsquare\nstar\n",
    "control": b"circle \x1b[2J\x07\nsquare\x08\nstar\x7f\n",
    "right_to_left": "circle\u202e\nsquare\u200f\nstar\u2066\n".encode(),
    "line_separator": "cir\u2028cle\nsqu\u0085are\n".encode(),
    "surrogate": b"circle\n\xed\xa0\x80\nstar\n",
    "long_line": b"x" * 10_000_000,
    "many_lines": b"\n".join(b"name %d" % i for i in range(200_000)),
    "twice": b"circle\ncircle\n",
    "tabs": b"\t\t\ncircle\tround\t\nsquare",
    "format": b"a {0.__class__.__mro__}\na {} {}\n{!r:>999999999}\n{:{}}\n",
    "braces": b"{" * 100_000,
    "percent": b"%s%n%999999999d {}\n",
    "yaml_laughs": b"a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]\n",
    "yaml_loop": b"&a [*a]",
    "yaml_python": b"!!python/object/apply:os.system ['touch canary']",
    "yaml_merge": b"a: &a {x: y}\nb: {<<: *a}\n",
    "yaml_deep": b"[" * 50_000,
    "yaml_keys": b"? [a, b]\n: c\n",
    "yaml_documents": b"- a\n---\n- b\n",
    "yaml_duplicates": b"a: b\na: c\n",
    "yaml_tabs": b"a:\n\t- b\n",
    "json_deep": b"[" * 200_000,
    "json_deep_closed": b"[" * 2_000 + b"]" * 2_000,
    "json_objects": b'{"a":' * 100_000,
    "json_number": b"[" + b"9" * 100_000 + b"]",
    "json_nan": b"[NaN, Infinity, -Infinity]",
    "json_half": b'["\\ud800"]',
    "json_nul": b'["a\\u0000b", "c"]',
    "json_duplicates": b'{"circle": "a", "circle": "b", "square": "c", "star": "d"}',
    "json_nested": b'{"circle": {"a": ["b"]}, "square": [["c"]], "star": [null, true, 1e999]}',
    "csv_quote": b'path,label\n"unclosed,circle\n' + b"x" * 300_000,
    "csv_columns": b"path," + b"a," * 100_000 + b"\n",
    "csv_ragged": b"path,label\na.png\nb.png,circle,more\n",
    "csv_nul": b"path,label\na\0.png,circle\n",
    "csv_escape": b"path,label\n\x1b]0;title\x07.png,circle\n",
    "csv_up": b"path,label\n../../../../etc/passwd,circle\n/dev/zero,circle\n",
    "csv_url": b"path,label\nnosuch://host/a.png,circle\n",
}
# Columns of a Parquet file that are no paths, or kilobytes that stand for gigabytes of them.
ODD_COLUMNS: dict[str, Callable[[], pa.Array]] = {
    "of nothing": lambda: pa.nulls(8),
    "of truths": lambda: pa.array([True] * 8),
    "of numbers": lambda: pa.array([-1, 0, 2**31, 2**62] * 2),
    "of fractions": lambda: pa.array([0.5, math.nan, math.inf, -math.inf] * 2),
    "of dates that are none": lambda: pa.array([2**31 - 1] * 8, pa.date32()),
    "of times that are none": lambda: pa.array([2**62] * 8, pa.timestamp("us")),
    "of lists": lambda: pa.array([["0.png"] * 9] * 8),
    "of bytes": lambda: pa.array([b"\xff"] * 8),
    "of no text": lambda: pa.array([b"\xff\xfe"] * 8).view(pa.string()),
    "of empty texts": lambda: pa.array([""] * 8),
    "of long texts": lambda: pa.array(["x" * 10**6] * 8),
    "of a long text often": lambda: pa.DictionaryArray.from_arrays(
        np.zeros(5_000, np.int32), ["x" * 10**5]
    ),
    "of very many": lambda: pa.array(["0.png"] * 4_000_000),
    "of very many numbers": lambda: pa.array(np.zeros(4_000_000, np.int64)),
}
_LITERALS = (
    "nan", "inf", "-inf", "1e999", "-1", "0", "10" * 200, "9" * 5_000, "None", "True", "", "x",
    "()", "(0.1,)", "[1", "{'a': 1}", "__import__('os').getpid()", "(" * 5_000, "\0", "\ud800",
    "1e-320", "0x10", "2**99", "\x1b[31m", "é" * 1_000, "nul\0inside", "/dev/zero", "a" * 5_000,
    "{000..999999999}", "{a,b}" * 40, "~", "~nobody/x", "[!", "*" * 50, "file://x", "http://",
)  # fmt: skip
# Where integers, float32 and the machine end, by the type of the field.
_NUMBERS: dict[type, tuple[str, ...]] = {
    int: (
        "0", "1", "7", "1000000000", "2147483647", "2147483648", "4294967295", "4294967296", "-1",
        "9223372036854775807", "100000000000000000000", "-2147483649",
    ),
    float: (
        "0", "-0.0", "0.5", "1", "7", "1e10", "1e38", "3.4e38", "3.5e38", "1e300", "1e-37",
        "1e-39", "5e-324", "-1e-39", "-1e300",
    ),
    tuple: ("(1e-300,1.0)", "(1e-37,1e-37)", "(0.3,1e300)", "(0,1)", "(1,1)", "(-0.1,0.5)"),
}  # fmt: skip
_CONFIGS = (
    "", "raise ValueError('a\\nb')", "1/0", "import nosuch", "def get_config(): return 3",
    "def get_config(): return get_config()", "def get_config(: pass", "get_config = None",
    "def get_config(): raise SystemExit(0)",
    "def get_config(): raise Exception('\\x1b[31m' + 'x' * 100000)", "(" * 5_000, "\0",
    "# -*- coding: nosuch -*-", "x = " + "-" * 50_000 + "1",
    "from must_jax.config import default_config\ndef get_config():\n  c = default_config()\n"
    "  c.seed = 10 ** 5000\n  return c",
    "from must_jax.config import default_config\ndef get_config():\n  c = default_config()\n"
    "  c.nosuch = 1\n  return c",
    "import ml_collections\ndef get_config():\n  c = ml_collections.ConfigDict()\n  c.a = c\n"
    "  return c",
    "def get_config():\n  return type('X', (), {'items': lambda s: 1/0})()",
    "class E(BaseException): pass\nraise E('x')", "import sys; sys.exit(3)",
    "class E(Exception):\n  def __str__(self): return 1/0\nraise E",
)  # fmt: skip


class Texts:
    """Cases of all kinds of files and flags in turn."""

    def __init__(self, *, checkpoint: str):
        """`checkpoint` is a whole converted checkpoint of 16-pixel images."""
        self._checkpoint = checkpoint
        self._arguments: list[str] = []
        self._images = whole_images()
        be_bound_by_modes()

    def prepare(self, index: int, rng: random.Random, folder: Path) -> str:
        """Writes a whole set of files, with one of them odd."""
        kind = _KINDS[index % len(_KINDS)]
        files = whole_files()
        stems = {"classes": "classes.txt", "templates": "templates.txt", "train": "train.csv"}
        flags_of: dict[str, str] = {}
        what, workdir = "", str(folder / "run")
        named = self._named(folder)
        if kind == "config.json":
            fields = {"seed": 1, "epochs": 2, "strong_view.crop_area": [0.3, 1]} | named
            text, what = mutate_json(fields, rng)
            files[kind] = text.encode("utf-8", "surrogatepass")
            if rng.random() < 0.3:
                files[kind], what = mutate_bytes(json.dumps(fields).encode(), rng)
        elif kind == "config.py":
            if rng.random() < 0.5:
                files[kind] = rng.choice(_CONFIGS).encode()
                what = repr(files[kind][:30])
            else:
                files[kind], what = mutate_bytes(files[kind], rng)
        elif kind in ("field", "path", "number"):
            fields = dict(main.flat_fields(main.default_config()))
            names = {
                "field": list(fields),
                "path": [name for name in fields if name.startswith(("dataset.", "checkpoint"))],
                "number": [name for name, value in fields.items() if type(value) in _NUMBERS],
            }
            name = rng.choice(names[kind])
            is_number = kind == "number"
            flags_of[name] = rng.choice(_NUMBERS[type(fields[name])] if is_number else _LITERALS)
            what = f"{name}={flags_of[name][:40]!r}"
        elif kind == "workdir":
            workdir, what = make_workdir(folder, rng)
        else:
            files[kind], what = _odd(kind, files[kind], rng)
            stems[kind.partition(".")[0]] = kind
        for name, content in (files | self._images).items():
            (folder / name).write_bytes(content)
        # The config file is a program, of the user's own.
        if kind in files and kind != "config.py" and rng.random() < 0.05:
            what = make_odd_file(folder / kind, rng)
        named |= {
            f"dataset.{field}": str(folder / stems[stem]) for field, stem in _FILES_OF.items()
        }
        if "descriptions" in stems:
            named["dataset.descriptions"] = str(folder / stems["descriptions"])
        self._kind = kind
        self._arguments = [
            "must_jax",
            f"--config={folder / 'config.py'}",
            f"--workdir={workdir}",
            *(f"--config.{name}={value}" for name, value in (named | flags_of).items()),
        ]
        return f"{kind}: {what}"

    def _named(self, folder: Path) -> dict[str, Any]:
        """Fields of a run on the whole files."""
        return {
            "checkpoint": self._checkpoint,
            "image_size": 16,
            "mask_patch_size": 8,
            "batch_size": len(self._images),
            "loader.num_threads": 2,
            "dataset.train": str(folder / "train.csv"),
            "dataset.class_names": str(folder / "classes.txt"),
            "dataset.templates": str(folder / "templates.txt"),
        }

    def run(self, folder: Path) -> tuple[str, str]:
        """Parses the flags, builds what the config names and makes a first batch."""
        try:
            status, output, errors = captured(_run, self._arguments, folder, self._kind)
        finally:
            open_all(folder)
        if (folder / "canary").exists() or Path("canary").exists():
            return "code run", errors
        if status == 0:
            return (BUILT, "") if not output + errors else ("noise", f"{output}{errors}")
        if status != 2:
            return "status", f"{status} {errors}"
        if output or errors.count("\n") != 1 or not errors.startswith("error: "):
            return "not one line", f"{output!r:.200} {errors!r:.400}"
        if not errors[:-1].isprintable() or len(errors) > MAX_LENGTH + 20:
            return "unprintable or long", f"{len(errors)} letters: {errors:.200}"
        shutil.rmtree(folder)
        return REFUSED, errors.strip()


def _run(arguments: list[str], folder: Path, kind: str) -> int:
    """What `must_jax.main` does with these flags before its first step; its exit code."""

    def run(argv: list[str]) -> None:
        workdir = main.local_path(main._WORKDIR.value, called="--workdir", advice=main.ON_A_DISK)
        if kind == "config.json":
            config = main.read_config(str(folder / "config.json"))
        else:
            config = flags.FLAGS["config"].value
        experiment = build(config)
        mesh = experiment.make_mesh()
        source = experiment.train_source(mesh)
        # Of the fields alone: files have been read by now.
        if kind in _OF_FIELDS:
            _make_schedules(experiment, steps_per_epoch=len(source) // config.batch_size)
            with experiment.train_batches(source, mesh=mesh, start_step=0) as batches:
                if not config.loader.num_workers:  # a case may start no processes
                    next(batches)
        if kind == "workdir":
            begin_in(workdir, config)

    flags.FLAGS.unparse_flags()
    for name in list(flags.FLAGS):
        # A field of the config before, which absl would go on to know.
        if name.startswith("config."):
            delattr(flags.FLAGS, name)
        elif flags.FLAGS[name].present:
            flags.FLAGS[name].unparse()
    flags.FLAGS["config"].unparse()
    old, sys.argv = sys.argv, arguments
    try:
        main._reporting(main.parse_flags)(arguments)
        logging.set_verbosity(logging.FATAL)  # as main does
        main._reporting(run)(arguments)
    except SystemExit as error:
        return int(error.code or 0) if isinstance(error.code, int | None) else 1
    finally:
        sys.argv = old
    return 0


def _make_schedules(experiment: Experiment, *, steps_per_epoch: int) -> None:
    shapes = experiment.student_shapes()
    keywords = experiment.step_keywords(shapes, steps_per_epoch=steps_per_epoch)
    for step in (0, 1, experiment.config.epochs * steps_per_epoch):
        for name in ("learning_rate", "ema_decay"):
            value = float(keywords[name](jnp.int32(step)))
            if not math.isfinite(value):
                raise ValueError(f"{name} is {value} at step {step}")


def _odd(kind: str, data: bytes, rng: random.Random) -> tuple[bytes, str]:
    choice = rng.random()
    if choice < 0.4:
        name = rng.choice(sorted(ODD_TEXTS))
        return ODD_TEXTS[name], name
    if choice < 0.6 and kind.endswith(".json"):
        text, what = mutate_json(json.loads(data), rng)
        return text.encode("utf-8", "surrogatepass"), what
    if choice < 0.7 and kind.endswith(".parquet"):
        file = io.BytesIO()
        name = rng.choice(sorted(ODD_COLUMNS))
        column = ODD_COLUMNS[name]()
        columns = {rng.choice(("path", "label", "")): column}
        if rng.random() < 0.5:
            columns = {"path": pa.array(["0.png"] * len(column)), "label": column}
        pq.write_table(pa.table(columns), file, compression="brotli", row_group_size=len(column))
        return file.getvalue(), f"column {name}"
    if choice < 0.7:
        odd = rng.choice([v for v in ODD_VALUES if isinstance(v, str)])
        return data.replace(b"circle", odd.encode("utf-8", "surrogatepass")), f"name {odd[:20]!r}"
    return mutate_bytes(data, rng)
