"""How well a run goes, told without labels: by its predictions of unlabelled probe images.

Confidence and dispersity together rank classifiers better than either alone (Deng et al., 2023,
"Confidence and dispersity speak"; Musgrave et al., 2022, arXiv:2208.07360, compare such criteria on
a million checkpoints). Confidence depends on the checkpoint's logit scale, though: of a CLIP that
is too sure, a run that goes well takes confidence away. `ranking` goes by what has no scale, the
mutual information of the classes that teacher and student say. It is high where both agree and use
all classes; maximising it of two views of the same images is how IIC learns classes without labels
(Ji et al., 2019, "Invariant information clustering"). Nothing of the kind tells two classifiers
that agree, are diverse and wrong: for that, agreement with zero-shot CLIP is measured.
"""

from must_jax.quality.judgement import Alarm, alarms, ranking
from must_jax.quality.measures import (
    COUNTS,
    ClassifierQuality,
    ProbePredictions,
    Quality,
    measure,
)

__all__ = [
    "COUNTS",
    "Alarm",
    "ClassifierQuality",
    "ProbePredictions",
    "Quality",
    "alarms",
    "measure",
    "ranking",
]
