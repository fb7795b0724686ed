"""Probes: what features are worth."""

from vidssl.evaluators.knn import KNN
from vidssl.evaluators.linear import Linear

EVALUATORS = {"knn": KNN, "linear": Linear}
