"""How well a run goes, told without labels: by its predictions of unlabelled probe images.

The mutual information between images and predictions, which `choose` goes by, is high where a
classifier is sure of each image and uses all classes (Bridle et al., 1991, "Unsupervised
classifiers, mutual information and phantom targets"). Confidence and dispersity together rank
classifiers better than either alone (Deng et al., 2023, "Confidence and dispersity speak"; Musgrave
et al., 2022, arXiv:2208.07360, compare such criteria on a million checkpoints). None of them tells
a classifier that is sure, diverse and wrong: for that, agreement with zero-shot CLIP is measured.
"""

from must_jax.quality.judgement import Alarm, alarms, choose
from must_jax.quality.measures import ClassifierQuality, ProbePredictions, Quality, measure

__all__ = [
    "Alarm",
    "ClassifierQuality",
    "ProbePredictions",
    "Quality",
    "alarms",
    "choose",
    "measure",
]
