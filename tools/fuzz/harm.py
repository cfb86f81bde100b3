"""Cases that do what no case may do, to test the watch over them."""

import os
import random
import subprocess
import tempfile
import time
from pathlib import Path


class Harm:
    """One kind of harm a case."""

    def prepare(self, index: int, rng: random.Random, folder: Path) -> str:
        """Picks the harm."""
        kinds = {
            "exits": lambda: os._exit(3),
            "hangs": lambda: time.sleep(60),
            "takes memory": lambda: bytearray(2**30),
            "raises": lambda: 1 // 0,
            "writes elsewhere": lambda: tempfile.TemporaryFile().close(),
            "runs a program": lambda: subprocess.run(["true"]),
        }
        name = list(kinds)[index]
        self._harm = kinds[name]
        return name

    def run(self, folder: Path) -> tuple[str, str]:
        """Does it."""
        self._harm()
        return "done", ""
