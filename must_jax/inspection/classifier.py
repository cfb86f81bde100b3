"""The zero-shot classifier of as many of a run's texts as there is time for."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from must_jax.experiment import Experiment
from must_jax.inspection.images import spread
from must_jax.tokenizer import tokenize
from must_jax.zero_shot import average_texts, embedded_batches

BATCH_SIZE = 64  # texts between two looks at the clock


def in_turns(texts: Sequence[Sequence[str]]) -> list[tuple[int, str]]:
    """Label and text: one text of each class, then a second one of each that has it, and so on.

    The first of each class's texts, any number of them, are spread over its list.
    """
    orders = [spread(len(of_class), len(of_class)) for of_class in texts]
    return [
        (label, texts[label][order[turn]])
        for turn in range(max(map(len, orders)))
        for label, order in enumerate(orders)
        if turn < len(order)
    ]


def zero_shot_classifier(experiment: Experiment, *, seconds: float) -> tuple[np.ndarray, int]:
    """The experiment's classifier, of fewer texts where all of them would take too long.

    Args:
        experiment: Texts and text tower.
        seconds: Time after which no further texts are encoded; one of each class is in any case.

    Returns:
        The classifier (E, K) and the number of texts that it is made of.
    """
    started = time.perf_counter()
    labels, texts = zip(*in_turns(experiment.texts), strict=True)
    num_classes = len(experiment.classes.names)
    batches = embedded_batches(
        tokenize(
            texts,
            tokenizer=experiment.tokenizer,
            context_length=experiment.spec.text.context_length,
        ),
        spec=experiment.spec,
        text_params=experiment.clip_params["text"],
        batch_size=BATCH_SIZE,
    )
    embeddings: list[np.ndarray] = []
    for batch in batches:
        embeddings.append(np.asarray(batch))
        used = sum(map(len, embeddings))
        if used >= num_classes and time.perf_counter() - started > seconds:
            break
    used_labels = np.array(labels[:used])
    order = np.argsort(used_labels, kind="stable")
    counts = np.bincount(used_labels, minlength=num_classes)
    return average_texts(np.concatenate(embeddings)[order], counts.tolist()), used
