"""Converts a CLIP checkpoint for must_jax.

SOURCE is a Hugging Face or OpenCLIP folder, or an OpenAI .pt file with its tokenizer beside it.
TARGET is the directory to write, whole or not at all. PyTorch is not needed.
"""

import argparse
import sys
from pathlib import Path
from typing import NoReturn

# So that the program runs in a checkout that was not installed.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from must_jax.cluster import quiet_tpu_library
from must_jax.convert import convert
from must_jax.errors import UserError, print_error, print_line


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as after any error."""
        print_error(f"{message}; --help shows the usage")
        sys.exit(2)


def main() -> int:
    """Runs the program; 2 after an error, which is one line on stderr."""
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("target", metavar="TARGET")
    parser.add_argument(
        "--tokenizer",
        metavar="DIR",
        help="folder of tokenizer files (default: SOURCE, or the folder of a .pt file)",
    )
    parser.add_argument(
        "--activation",
        choices=["quick_gelu", "gelu"],
        help="of a .pt file that is not OpenAI's own (default: quick_gelu)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a converted TARGET")
    args = parser.parse_args()
    quiet_tpu_library()
    try:
        summary = convert(
            args.source,
            args.target,
            tokenizer=args.tokenizer,
            activation=args.activation,
            overwrite=args.overwrite,
        )
    except UserError as error:
        print_error(str(error))
        return 2
    except MemoryError:
        print_error(f"{args.source}: there is not enough memory for it")
        return 2
    print_line(f"{summary} -> {args.target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
