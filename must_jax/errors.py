"""The exceptions that users see, and how text reaches their terminal."""

import contextlib
import os
import sys
from typing import TextIO

EXIT_USER_ERROR = 2
EXIT_STOPPED = os.EX_TEMPFAIL  # 75, "temporary failure": start it again


def one_line(text: str) -> str:
    """`text` without line breaks, control characters or undecodable bytes, which are escaped.

    File names may hold all of them, and a terminal may refuse or obey them.
    """
    clean = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in clean)


# Room for a hundred names; beyond, the middle is left out. What comes from a file has any length.
MAX_LENGTH = 10_000


def _clipped(text: str) -> str:
    half = MAX_LENGTH // 2
    return text if len(text) <= MAX_LENGTH else f"{text[:half]} ... {text[-half:]}"


def first_line(error: BaseException) -> str:
    """What libraries say before their pages of detail, as `one_line` has it."""
    return one_line(str(error).strip().partition("\n")[0])


def reason(error: OSError) -> str:
    """Why a file can't be had, without its path where that is known."""
    return error.strerror or str(error) or type(error).__name__


def print_line(text: str, *, file: TextIO | None = None) -> None:
    """Prints a line, to stdout where no file is given, if that takes it.

    The disk that it goes to may be full, the terminal gone, the reader of a pipe at its end: what
    a program does goes on without its words.
    """
    with contextlib.suppress(OSError, ValueError):
        print(one_line(text), file=file, flush=True)


def print_error(text: str) -> None:
    """Prints the line that a program ends with, as `print_line` does."""
    print_line(f"error: {text}", file=sys.stderr)


def flush_output() -> None:
    """Drops what was printed and can't be written, or Python would end with another exit code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())


class UserError(Exception):
    """Bad input, told in one line: what was wrong, where, and what to do.

    `must_jax.main` and the programs in `tools/` print the message alone and exit with `exit_code`.
    """

    exit_code = EXIT_USER_ERROR

    def __init__(self, message: str):
        """The message is kept to one printable line of bounded length."""
        # Once before, as escapes are longer than what they stand for, and take long to make.
        super().__init__(_clipped(one_line(_clipped(message))))


class LostInputError(UserError):
    """What was read until now can't be read any more: what was made of it is worth saving."""


class StoppedError(Exception):
    """The run was asked to stop and did, with nothing lost; `must_jax.main` exits with code 75."""
