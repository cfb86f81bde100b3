"""The kinds of input that are damaged, what each needs first, and which outcomes are no faults."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fuzz.worker import Outcome, run_cases

MEMORY = 4 * 2**30  # bytes of address space: an image below Pillow's limit may take as much
SECONDS = 60.0  # a case's, on a machine that is busy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of input.

    Attributes:
      cases: `module:class` of its cases.
      make: writes whole files into an empty folder, and gives the keywords of the class.
      fine: kinds of outcomes that are no faults.
      cases_in_all: that the long form runs.
    """

    cases: str
    make: Callable[[Path], dict[str, Any]]
    fine: tuple[str, ...]
    cases_in_all: int = 2200


def _checkpoints(folder: Path) -> dict[str, Any]:
    # PyTorch writes the whole files; what reads the damaged ones has none.
    from fuzz.checkpoint_seeds import write_seeds

    return {"seeds": str(folder), "sources": write_seeds(folder)}


def _converted(folder: Path) -> dict[str, Any]:
    from fuzz.checkpoint_seeds import write_seeds
    from must_jax.convert import convert

    sources = write_seeds(folder / "seeds")
    convert(folder / "seeds" / sources["hf_fast_tokenizer"], folder / "clip")
    return {"folder": str(folder / "clip")}


def _runs(folder: Path) -> dict[str, Any]:
    import tiny_run

    from must_jax.train import train

    tiny_run.write_all(folder)
    train(tiny_run.config(folder, log_every_steps=3), str(folder / "run"))
    return {"folder": str(folder)}


def _texts(folder: Path) -> dict[str, Any]:
    from tiny_run import write_checkpoint

    return {"checkpoint": str(write_checkpoint(folder / "clip"))}


FAMILIES = {
    "checkpoints": Kind(
        cases="checkpoints:Checkpoints",
        make=_checkpoints,
        fine=("refused", "same", "other weights", "other model"),
    ),
    "converted": Kind(cases="converted:Converted", make=_converted, fine=("refused", "loaded")),
    "images": Kind(
        cases="images:Images",
        make=lambda folder: {},
        fine=("skipped", "decoded"),
        cases_in_all=3300,
    ),
    "runs": Kind(
        cases="runs:Runs",
        make=_runs,
        fine=("refused", "same", "the one before", "other notes"),
    ),
    "texts": Kind(cases="texts:Texts", make=_texts, fine=("refused", "built")),
}


def outcomes(name: str, indices: range, *, seed: int, folder: Path) -> Iterator[Outcome]:
    """The outcomes of cases of one kind of input; whole files are written below `folder`."""
    kind = FAMILIES[name]
    home = folder / name
    home.mkdir()
    yield from run_cases(
        kind.cases, kind.make(home), indices=indices, seed=seed, memory=MEMORY, seconds=SECONDS
    )
