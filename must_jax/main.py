"""Command line: reads flags and runs."""

import functools
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from must_jax import distributed
from must_jax.config import default_config, flat_fields, read_config, unknown_field
from must_jax.errors import UserError
from must_jax.inspection.runner import inspect_run
from must_jax.score import score, score_zero_shot
from must_jax.train import CONFIG_FILE, train

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, such as configs/digits.py; --config.FIELD=VALUE overrides."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; resumed if it has one.")
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "eval", "zeroshot", "inspect"],
    "Train; score a workdir's checkpoint; score zero-shot CLIP, for which --workdir is optional; "
    "show in a page what the run will see and do.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address",
    None,
    "HOST:PORT of process 0 of several, where no TPU pod, SLURM or GKE tells: docs/scaling.md.",
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many; 1: alone, in any cluster.")
_CONNECT_SECONDS = flags.DEFINE_float(
    "connect_seconds", distributed.CONNECT_SECONDS, "How long to wait for the other processes."
)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
_DISABLE_JIT = flags.DEFINE_bool("disable_jit", False, "Run op by op, to step through in pdb.")

EXIT_USER_ERROR = 2
EXIT_FAILURE = 1


def main(argv: Sequence[str]) -> None:
    """Runs what the flags say."""
    if len(argv) > 1:
        raise UserError(f"argument {argv[1]!r} is not a flag; try --help")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # orbax tells a page for every checkpoint
    workdir = os.path.expanduser(_WORKDIR.value or "")
    if not workdir and _MODE.value != "zeroshot":
        raise UserError("--workdir is missing; give the folder that the run writes to")
    if _DISABLE_JIT.value:
        jax.config.update("jax_disable_jit", True)
    config = _CONFIG.value
    if config is None and workdir and _MODE.value != "train":
        config = read_config(os.path.join(workdir, CONFIG_FILE))
    if config is None:
        raise UserError("--config is missing; give a config file, such as configs/digits.py")
    distributed.initialize(
        coordinator_address=_COORDINATOR.value,
        num_processes=_NUM_PROCESSES.value,
        process_id=_PROCESS_ID.value,
        connect_seconds=_CONNECT_SECONDS.value,
    )
    if _DISABLE_JIT.value and distributed.is_running():
        raise UserError("--disable_jit runs in one process alone; leave it out, or the others")
    modes = {"train": train, "eval": score, "zeroshot": score_zero_shot, "inspect": inspect_run}
    modes[_MODE.value](config, workdir)


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses flags.

    Raises:
      UserError: a flag or a field is unknown or ill-typed, or the config file does not load.
    """
    # ml_collections would tell of a file that returns no config before the error does.
    logging.set_verbosity(logging.ERROR)
    fields = dict(flat_fields(default_config()))
    for argument in argv[1:]:
        override = re.match(r"--?config\.([\w.]+)", argument)
        if override and override[1] not in fields:
            raise unknown_field(override[1])
        if override and not any(re.match(r"--?config(=|$)", a) for a in argv[1:]):
            raise UserError(f"{argument} needs --config, a config file whose field it overrides")
    try:
        args = flags.FLAGS(argv)
        if flags.FLAGS["config"].present:
            if _CONFIG.value is None:
                raise ValueError("get_config() returned nothing")
            _CONFIG.value.items()  # a file that is missing says so here
    except UserError:
        raise
    except flags.Error as error:
        # What a config file raises comes with its traceback; the last line says it.
        *above, last = str(error).strip().splitlines()
        raise UserError(f"the config file does not load: {last}" if above else last) from error
    except Exception as error:
        # Whatever a config file raises: it is the user's program.
        raise UserError(f"the config file does not load: {_reason(error)}") from error
    return args


def _reason(error: Exception) -> str:
    added = re.search(r'Key "(\w+)" does not exist', str(error))
    if added:
        return str(unknown_field(added[1]))
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].strip() if lines else error}"


def _reporting(function: Callable[[Sequence[str]], Any]) -> Callable[[Sequence[str]], Any]:
    @functools.wraps(function)
    def reporting(argv: Sequence[str]) -> Any:
        try:
            return function(argv)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            distributed.announce(error)
            if distributed.is_running():
                distributed.end(EXIT_USER_ERROR)
            sys.exit(EXIT_USER_ERROR)
        except Exception as error:
            if not distributed.is_running():
                raise
            distributed.announce(error)
            traceback.print_exc()
            distributed.end(EXIT_FAILURE)

    return reporting


def run() -> None:
    """The console command `must-jax`."""
    app.run(_reporting(main), flags_parser=_reporting(parse_flags))


if __name__ == "__main__":
    run()
