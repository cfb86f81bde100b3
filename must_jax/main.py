"""Command line: reads flags and runs."""

import atexit
import contextlib
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

from must_jax import checkpoint_writer, distributed, profiling
from must_jax.cluster import quiet_tpu_library
from must_jax.compile_cache import use_compile_cache
from must_jax.config import default_config, flat_fields, read_config, unknown_field
from must_jax.data import patience
from must_jax.errors import EXIT_STOPPED, StoppedError, UserError, flush_output, print_error
from must_jax.inspection.runner import inspect_run
from must_jax.local_files import local_path
from must_jax.predict import TREES, Request, predict
from must_jax.replay import replay
from must_jax.reporting.runner import report_again
from must_jax.resume import CONFIG_FILE, LAST
from must_jax.score import score, score_zero_shot
from must_jax.train import train

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, such as configs/digits.py; --config.FIELD=VALUE overrides."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; resumed if it has one.")
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "eval", "zeroshot", "inspect", "predict", "report", "replay"],
    "Train; score a workdir's checkpoint; score zero-shot CLIP, for which --workdir is optional; "
    "show in a page what the run will see and do; predict images into a file; make the report of "
    "a finished run again; repeat the step that is not finite, at which a run ended.",
)
_STEP = flags.DEFINE_string(
    "step",
    None,
    "Checkpoint to score, predict with or export: last, which it is by default, chosen (without "
    "labels), or a step.",
)
# Of --mode=predict.
_IMAGES = flags.DEFINE_string("images", None, "Images to predict; default: config.dataset.train.")
_TREE = flags.DEFINE_enum("tree", None, TREES, "Which parameters predict; default: the teacher.")
_TOP_K = flags.DEFINE_integer("top_k", None, "Classes for each image; default: 5.")
_OUTPUT = flags.DEFINE_string(
    "output", None, "A .csv, .jsonl or .parquet file; default: WORKDIR/predictions.csv."
)
_SORT_INTO = flags.DEFINE_string("sort_into", None, "Folder for a folder of images a class.")
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
_COMPILE_CACHE = flags.DEFINE_bool(
    "compile_cache",
    True,
    "Keep compiled programs in ~/.cache/must_jax for the next start, or where "
    "JAX_COMPILATION_CACHE_DIR says.",
)

# Its value may be left out, as a boolean flag's: --profile, --profile=10:13.
_PROFILE: flags.FlagHolder[str | None] = flags.DEFINE_flag(
    flags.Flag(
        flags.ArgumentParser(),
        None,
        "profile",
        None,
        "Trace steps FROM:TO, or a few, for TensorBoard: docs/watching.md.",
        boolean=True,
    )
)

# Where runs are written.
ON_A_DISK = "give a folder on a disk, which all hosts of a run see (docs/pods.md)"

EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130  # as a shell has it after Ctrl-C


def main(argv: Sequence[str]) -> None:
    """Runs what the flags say."""
    if len(argv) > 1:
        raise UserError(f"argument {argv[1]!r} is not a flag; try --help")
    if not flags.FLAGS["verbosity"].present:
        # Orbax tells a page for every checkpoint, and all that it raises beforehand.
        logging.set_verbosity(logging.FATAL)
    workdir = local_path(_WORKDIR.value or "", called="--workdir", advice=ON_A_DISK)
    request = _request()
    of_no_run = request and request.tree == "zeroshot" and request.output
    if not workdir and _MODE.value != "zeroshot" and not of_no_run:
        raise UserError("--workdir is missing; give the folder that the run writes to")
    profile = None if _PROFILE.value == "false" else _PROFILE.value
    if profile is not None:
        profiling.parse_steps(profile)
        if _MODE.value != "train":
            raise UserError(f"--profile traces training steps, and --mode={_MODE.value} has none")
    if _DISABLE_JIT.value:
        jax.config.update("jax_disable_jit", True)
    config = _CONFIG.value
    if config is None and workdir and _MODE.value != "train":
        config = read_config(os.path.join(workdir, CONFIG_FILE))
    if config is None:
        raise UserError("--config is missing; give a config file, such as configs/digits.py")
    quiet_tpu_library()
    distributed.initialize(
        coordinator_address=_COORDINATOR.value,
        num_processes=_NUM_PROCESSES.value,
        process_id=_PROCESS_ID.value,
        connect_seconds=_CONNECT_SECONDS.value,
    )
    if _DISABLE_JIT.value and distributed.is_running():
        raise UserError("--disable_jit runs in one process alone; leave it out, or the others")
    if _COMPILE_CACHE.value:
        use_compile_cache()
    if request:
        predict(config, workdir, request=request)
        return
    modes: dict[str, Callable[..., Any]] = {
        "train": functools.partial(train, profile=profile),
        "eval": functools.partial(score, which=_STEP.value or LAST),
        "zeroshot": score_zero_shot,
        "inspect": inspect_run,
        "report": report_again,
        "replay": replay,
    }
    modes[_MODE.value](config, workdir)


def _request() -> Request | None:
    """What `--mode=predict` is asked for; None in another mode, which has no use for its flags."""
    given: dict[str, Any] = {
        holder.name: holder.value
        for holder in (_IMAGES, _TREE, _TOP_K, _OUTPUT, _SORT_INTO, _STEP)
        if holder.value is not None
    }
    if _MODE.value == "predict":
        return Request(**given)
    if _MODE.value == "eval":
        given.pop("step", None)
    if given:
        raise UserError(f"--{next(iter(given))} goes with --mode=predict; leave it out")
    return None


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
        if re.match(r"--?config=\w+://", argument):
            raise UserError(f"{argument} must be a local path; copy the file to a disk first")
    try:
        args = flags.FLAGS(argv)
        if flags.FLAGS["config"].present:
            if _CONFIG.value is None:
                raise ValueError("get_config() returned nothing")
            _CONFIG.value.items()  # a file that is missing says so here
    except UserError:
        raise
    except SystemExit as ending:
        if any(re.match(r"--?(help|\?)", argument) for argument in argv[1:]):
            raise
        raise UserError(f"the config file does not load: it ends by sys.exit({ending})") from ending
    except KeyboardInterrupt:
        raise
    # Whatever a config file raises: it is the user's program.
    except BaseException as error:
        raise UserError(_reason(error, line=_config_line(error, argv))) from error
    return args


def _reason(error: BaseException, *, line: int | None) -> str:
    """What is wrong with the flags, or in a line of the config file."""
    try:
        told = [text.strip() for text in str(error).splitlines() if text.strip()]
    except Exception:  # of the config file's own making
        told = []
    if isinstance(error, flags.Error):
        # What a config file raises may come with its traceback; the last line says it.
        if len(told) == 1 and line is None:
            return told[0]
        reason = told[-1] if told else type(error).__name__
    else:
        added = re.search(r'Key "(\w+)" does not exist', " ".join(told))
        last = f": {told[-1]}" if told else ""
        reason = str(unknown_field(added[1])) if added else f"{type(error).__name__}{last}"
    at = f" (line {line})" if line is not None else ""
    return f"the config file does not load: {reason}{at}"


def _config_line(error: BaseException | None, argv: Sequence[str]) -> int | None:
    """The line of the config file that raised an error or what led to it; None: none did."""
    line = None
    # After a colon, a file takes a string.
    names = [re.sub("^--?config=|:.*", "", argument) for argument in argv[1:]]
    files = {os.path.abspath(name) for name in names}
    while error is not None:
        for frame in traceback.extract_tb(error.__traceback__):
            if os.path.abspath(frame.filename) in files:
                line = frame.lineno
        error = error.__cause__ or error.__context__
    return line


def _reporting(function: Callable[[Sequence[str]], Any]) -> Callable[[Sequence[str]], Any]:
    @functools.wraps(function)
    def reporting(argv: Sequence[str]) -> Any:
        try:
            return function(argv)
        except UserError as error:
            print_error(str(error))
            distributed.announce(error)
            if distributed.is_running():
                distributed.end(error.exit_code)
            sys.exit(error.exit_code)
        except StoppedError:
            pass  # left behind, with the memory that its frames share with workers, before the exit
        except KeyboardInterrupt:
            print_error("interrupted")
            os._exit(EXIT_INTERRUPTED)  # threads and processes may be at work
        except Exception as error:
            if not distributed.is_running():
                raise
            distributed.announce(error)
            with contextlib.suppress(OSError):
                traceback.print_exc()
            distributed.end(EXIT_FAILURE)
        sys.exit(EXIT_STOPPED)

    return reporting


def run(command: Callable[[Sequence[str]], Any] = main) -> None:
    """Runs a command, without one the console's `must-jax`; bad input ends it with one line."""
    try:
        app.run(_reporting(command), flags_parser=_reporting(parse_flags))
    except SystemExit as ending:
        if checkpoint_writer.has_abandoned_threads.is_set():
            atexit._run_exitfuncs()
            flush_output()
            os._exit(ending.code if isinstance(ending.code, int) else 0)
        flush_output()
        raise
    finally:
        patience.give_up()


if __name__ == "__main__":
    run()
