"""Probes: what features are worth."""

from vidssl.evaluators.attentive import Attentive
from vidssl.evaluators.knn import KNN
from vidssl.evaluators.linear import Linear
from vidssl.evaluators.linear_sgd import LinearSGD
from vidssl.evaluators.retrieval import Retrieval

EVALUATORS = {
    "attentive": Attentive,
    "knn": KNN,
    "linear": Linear,
    "linear_sgd": LinearSGD,
    "retrieval": Retrieval,
}
