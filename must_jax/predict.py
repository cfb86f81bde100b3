"""`--mode=predict`: classes and probabilities for any number of images, into a file."""

import collections
import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from must_jax import distributed, sharding
from must_jax.checkpoint import digest
from must_jax.compile import jit_predict_step
from must_jax.data.loader import failures
from must_jax.data.sources import Source
from must_jax.data.sources.subset import Subset
from must_jax.errors import UserError
from must_jax.experiment import Experiment, build
from must_jax.predictions import ClassFolders, Output, Predicted, Tally, check_output
from must_jax.progress import STEPS_AHEAD, percent, say
from must_jax.resume import LAST, read_state
from must_jax.state import Params

TREES = ("teacher", "student", "zeroshot")
TOP_K = 5
COMMIT_SECONDS = 10.0  # of work that a kill loses at most
TELL_SECONDS = 30.0
NAMES_COMPARED = 100  # of the images, to tell whether they are those of a run that was stopped


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What to predict, and where to.

    Attributes:
      images: a source, read as config.dataset.train is; empty: that one.
      tree: which parameters predict, one of `TREES`.
      step: of which checkpoint, as `read_state` finds it.
      top_k: classes for each image; None: five, or all where there are fewer.
      output: the file; empty: predictions.csv in the workdir.
      sort_into: a folder for a folder a class; empty: none.
    """

    images: str = ""
    tree: str = TREES[0]
    step: str = LAST
    top_k: int | None = None
    output: str = ""
    sort_into: str = ""


def predict(config: ml_collections.ConfigDict, workdir: str, *, request: Request) -> Tally:
    """Predicts every image of a source once, in its order, and writes that to a file.

    The same command goes on where a run was stopped.

    Raises:
      UserError: the input is bad, the checkpoint is missing, or the output can't be written.
    """
    path = check_output(request.output or os.path.join(workdir, "predictions.csv"))
    experiment = build(config)
    names = experiment.classes.names
    top_k = min(TOP_K, len(names)) if request.top_k is None else request.top_k
    if not 1 <= top_k <= len(names):
        raise UserError(f"--top_k={top_k} must be from 1 to {len(names)}, the number of classes")
    mesh = experiment.make_mesh()
    source = experiment.images(request.images or config.dataset.train)
    params = _parameters(experiment, mesh, workdir=workdir, tree=request.tree, step=request.step)
    spread = np.linspace(0, len(source) - 1, NAMES_COMPARED).astype(int).tolist()
    facts = {
        "--images": source.path,
        "the number of images": len(source),
        "the SHA-256 of some of their names": _sha256([*map(source.name_of, spread)]),
        "--tree": request.tree,
        "the SHA-256 of its parameters": digest(params),
        "--top_k": top_k,
        "--sort_into": request.sort_into,
        "the SHA-256 of the class names": _sha256(names),
        "config.image_size": config.image_size,
        "config.dtype": config.dtype,
    }
    distributed.require_same(facts)
    output = folders = None
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            output = Output(
                path, facts=facts, class_names=names, top_k=top_k, predicted_by=request.tree
            )
            stack.callback(output.close)
            if request.sort_into and output.tally.images < len(source):
                folders = ClassFolders(
                    request.sort_into,
                    class_names=names,
                    facts=facts,
                    has_begun=output.tally.images > output.tally.failed,
                )
        writer = _Writer(source, output=output, folders=folders)
        if writer.done:
            say(f"going on after {writer.done} of {len(source)} images")
        if writer.done < len(source):
            _predict_rest(experiment, mesh, params, source=source, writer=writer, top_k=top_k)
        tally = writer.finish()
    if output is not None:
        _tell(tally, names=names, path=path, failures=output.failures, request=request)
    return tally


def _sha256(texts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def _parameters(
    experiment: Experiment, mesh: Mesh, *, workdir: str, tree: str, step: str
) -> Params:
    if tree == "zeroshot":
        student = experiment.zero_shot_student()
        return sharding.put(student, sharding.state_shardings(mesh, student))
    state = read_state(experiment, workdir, mesh=mesh, which=step).state
    return state.teacher_params if tree == "teacher" else state.params


def _predict_rest(
    experiment: Experiment,
    mesh: Mesh,
    params: Params,
    *,
    source: Source,
    writer: "_Writer",
    top_k: int,
) -> None:
    step = jit_predict_step(
        mesh,
        params,
        model=experiment.model,
        image_mean=experiment.spec.image_mean,
        image_std=experiment.spec.image_std,
        top_k=top_k,
    )
    # A batch is no larger than the source, for a few images must not cost what many do.
    config = experiment.config.copy_and_resolve_references()
    config.batch_size = min(config.batch_size, len(source))
    small = dataclasses.replace(experiment, config=config)
    first = writer.done
    rest = Subset(source, range(first, len(source)))
    pending: collections.deque[tuple[dict[int, str], Any]] = collections.deque()
    with small.eval_batches(rest, mesh=mesh) as batches, distributed.ending_together():
        for batch in batches:
            arrays = {name: batch[name] for name in ("image", "valid")}
            pending.append((failures(batch), step(params, sharding.to_mesh(arrays, mesh))))
            if len(pending) > STEPS_AHEAD:
                writer.take(*pending.popleft(), start=first)
        while pending:
            writer.take(*pending.popleft(), start=first)


class _Writer:
    """Brings batches to the disk, on the first process; the others help to tell what failed."""

    def __init__(self, source: Source, *, output: Output | None, folders: ClassFolders | None):
        self._source = source
        self._output = output
        self._folders = folders
        # As every process counts them.
        self.done: int = distributed.from_first(output.tally.images if output else None)
        self._first = self.done
        self._started = self._committed = self._told = time.perf_counter()

    def take(self, failed: dict[int, str], predicted: Any, *, start: int) -> None:
        """Takes a batch: what failed here, and the classes and probabilities of all processes."""
        classes, probabilities = (distributed.whole(array) for array in predicted)
        count = min(len(classes), len(self._source) - self.done)
        classes, probabilities = classes[:count], probabilities[:count]
        known = classes[:, 0] >= 0
        if not np.isfinite(probabilities[known]).all():
            raise UserError(
                "the predictions are no numbers: the checkpoint is of a run that diverged; take "
                "another one, or train with a lower config.learning_rate"
            )
        reasons: dict[int, str] = {}
        if not known.all():
            for one in distributed.gather(failed):
                reasons |= {int(record) + start: reason for record, reason in one.items()}
        records = range(self.done, self.done + count)
        self.done += count
        if self._output is None:
            return
        names = [self._source.name_of(record) for record in records]
        if self._folders:
            for record, label in zip(records, classes[:, 0].tolist(), strict=True):
                if label >= 0:
                    self._folders.place(label, record=record, source=self._source)
        places = {record - records.start: reason for record, reason in reasons.items()}
        self._output.add(Predicted(names, classes, probabilities, places))
        now = time.perf_counter()
        if now - self._committed > COMMIT_SECONDS:
            self._output.commit()
            self._committed = now
        if now - self._told > TELL_SECONDS:
            self._tell(now)

    def finish(self) -> Tally:
        """Completes the files, and tells every process what was predicted."""
        tally = None
        if self._output is not None:
            # In this order, for a folder that is whole can't be gone on with.
            self._output.commit()
            if self._folders:
                self._folders.finish()
            self._output.finish()
            tally = dataclasses.asdict(self._output.tally)
        return Tally(**distributed.from_first(tally))

    def _tell(self, now: float) -> None:
        rate = (self.done - self._first) / (now - self._started)
        remaining = datetime.timedelta(seconds=round((len(self._source) - self.done) / rate))
        say(f"{self.done} of {len(self._source)} images  {rate:.0f} images/s  ETA {remaining}")
        self._told = now


def _tell(
    tally: Tally,
    *,
    names: Sequence[str],
    path: pathlib.Path,
    failures: pathlib.Path,
    request: Request,
) -> None:
    known = tally.images - tally.failed
    most = sorted(range(len(names)), key=lambda label: -tally.counts[label])[:3]
    told = [f"{names[label]} {percent(tally.counts[label] / max(known, 1))}" for label in most]
    more = sum(count > 0 for count in tally.counts) - len(most)
    failed = f", of which {tally.failed} failed, listed in {failures}" if tally.failed else ""
    sorted_into = f", sorted into {request.sort_into}" if request.sort_into else ""
    say(
        f"{request.tree} predicted {tally.images} images{failed}: {', '.join(told)}"
        f"{f' and {more} more classes' if more > 0 else ''}; mean confidence "
        f"{percent(tally.confidence / max(known, 1))}; written to {path}{sorted_into}"
    )
