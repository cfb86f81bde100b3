"""Writes requirements.lock: the versions of constraints.txt, with the hashes of their files.

    pip install uv && python tools/make_lock.py

constraints.txt is where versions are changed; this follows. Locked is what the project is built
with, and what it and the extras `digits`, `plan` and `test` need on any platform, but not PyTorch,
an oracle in the tests alone: its files, and the CUDA packages that they bring, differ by machine
and index.
"""

import pathlib
import re
import subprocess
import sys
import tempfile
import tomllib

ROOT = pathlib.Path(__file__).parents[1]
LOCK = ROOT / "requirements.lock"
HEADER = "# constraints.txt with hashes, without PyTorch; written by tools/make_lock.py.\n"


def main() -> int:
    """Runs the program; uv's exit code if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        nowhere = pathlib.Path(folder) / "overrides.txt"
        nowhere.write_text("torch; python_version < '0'\n")
        build = pathlib.Path(folder) / "build.txt"
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())
        build.write_text("\n".join(project["build-system"]["requires"]))
        command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", str(build)]
        command += ["--constraint=constraints.txt"]
        command += [f"--extra={name}" for name in ("digits", "plan", "test")]
        command += [f"--override={nowhere}", "--universal", "--python-version=3.11"]
        command += ["--generate-hashes", "--no-header", "--no-annotate", "--no-emit-index-url"]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return done.returncode
    LOCK.write_text(HEADER + done.stdout)
    print(f"{len(re.findall('^[a-z]', done.stdout, re.MULTILINE))} packages -> {LOCK.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
