"""A finished run for other libraries, or as one program to serve.

python -m must_jax.export --workdir=runs/digits --target=exports/digits --format=hugging_face
"""

import os
from collections.abc import Sequence

# Read when jax is imported: what is written is the same wherever it is written.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from absl import flags, logging

from must_jax import main as command
from must_jax.config import read_config
from must_jax.errors import UserError
from must_jax.exporting.finished import TREES
from must_jax.exporting.runner import FORMATS, export_run
from must_jax.exporting.weights import KINDS
from must_jax.local_files import local_path
from must_jax.resume import CONFIG_FILE, LAST

flags.DEFINE_string("target", None, "Folder to write, whole or not at all.")
flags.DEFINE_enum("format", None, FORMATS, "Whose layout.")
_WEIGHTS = flags.DEFINE_enum("weights", None, KINDS, "Of --format=serving: float32 if not told.")
_DTYPE = flags.DEFINE_enum(
    "dtype", None, ["float32", "bfloat16"], "Of --format=serving: to compute in, if not as the run."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an export at --target.")


def main(argv: Sequence[str]) -> None:
    """Exports what the flags say."""
    if len(argv) > 1:
        raise UserError(f"argument {argv[1]!r} is not a flag; try --help")
    if not flags.FLAGS["verbosity"].present:
        # Orbax tells a page for every checkpoint, and all that it raises beforehand.
        logging.set_verbosity(logging.FATAL)
    workdir = local_path(_required("workdir"), called="--workdir", advice=command.ON_A_DISK)
    tree = flags.FLAGS.tree or TREES[0]  # a flag of the command that predicts, too
    if tree not in TREES:
        raise UserError(f"--tree={tree} is not what a run has; give one of {', '.join(TREES)}")
    config = flags.FLAGS.config or read_config(os.path.join(workdir, CONFIG_FILE))
    export_run(
        config,
        workdir,
        local_path(_required("target"), called="--target", advice="copy it from there"),
        format=_required("format"),
        tree=tree,
        which=flags.FLAGS.step or LAST,
        weights=_WEIGHTS.value,
        dtype=_DTYPE.value,
        overwrite=_OVERWRITE.value,
    )


def _required(name: str) -> str:
    value: str | None = flags.FLAGS[name].value
    if not value:
        raise UserError(f"--{name} is missing; try --help")
    return value


if __name__ == "__main__":
    command.run(main)
