"""A made-up inspection, any part of which a test may change."""

import numpy as np

from must_jax.inspection.facts import RunFacts
from must_jax.inspection.images import ImageSurvey
from must_jax.inspection.names import NearNames
from must_jax.inspection.prompts import Prompts
from must_jax.inspection.report import Report
from must_jax.inspection.sheet import Card, Guess
from must_jax.inspection.statistics import Predictions

# A name that would end an attribute, a tag and the page's text, turn a terminal's colours and the
# direction of writing, and that is no UTF-8 either.
HOSTILE = "\"'><script>alert(1)</script>&amp;<img src=x>\x1b[31m\x00\n\u202e\udcff"


def facts(**changes):
    fields = {
        "images": 100,
        "test_images": 10,
        "num_classes": 3,
        "num_templates": 2,
        "batch_size": 10,
        "epochs": 60,
        "devices": 2,
        "device_kind": "cpu",
        "image_size": 16,
        "num_patches": 16,
        "masked_patches": 4,
        "state_bytes": 1000,
        "learning_rate": 1e-3,
        "confidence_threshold": 0.5,
        "ema_decay": 0.99,
        "start_weight": 0.01,
        "checkpoint_step": None,
    }
    return RunFacts(**(fields | changes))


def survey(**changes):
    fields = {
        "looked_at": 4,
        "sizes": np.array([[20, 30], [50, 40], [16, 16]]),
        "formats": {"PNG": 3},
        "failures": (),
        "duplicates": (),
    }
    return ImageSurvey(**(fields | changes))


def predictions(**changes):
    fields = {
        "confidence": np.array([0.3, 0.9, 0.7, 0.6]),
        "predicted": np.array([0, 1, 2, 1]),
        "labels": None,
        "num_classes": 3,
    }
    return Predictions(**(fields | changes))


def near(**changes):
    fields = {
        "pairs": ((0, 1, 0.8), (0, 2, 0.7), (1, 2, 0.6)),
        "median": 0.7,
        "bound": 0.999,
        "num_flagged": 0,
        "same": (),
    }
    return NearNames(**(fields | changes))


def prompts(**changes):
    fields = {"count": 6, "context_length": 16, "longest": 9, "num_cut": 0, "cut": ()}
    return Prompts(**(fields | changes))


def card(**changes):
    fields = {
        "name": "some/image.png",
        "label": None,
        "zero_shot": Guess(predicted=1, confidence=0.4),
        "teacher": None,
        "weak": "data:image/png;base64,AAAA",
        "strong": "data:image/png;base64,AAAA",
        "masked": "data:image/png;base64,AAAA",
        "reconstructed": "data:image/png;base64,AAAA",
    }
    return Card(**(fields | changes))


def report(**changes):
    """A report that there is nothing to warn of in."""
    fields = {
        "workdir": "runs/mine",
        "source": "data/mine",
        "class_names": ("circle", "square", "star"),
        "facts": facts(),
        "survey": survey(),
        "predictions": predictions(),
        "prompts_used": 6,
        "near": near(),
        "prompts": prompts(),
        "cards": (card(),),
        "seconds": 3.0,
    }
    return Report(**(fields | changes))
