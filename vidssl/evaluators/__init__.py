"""Probes: what features are worth."""

from vidssl.interfaces import Evaluator
from vidssl.interfaces.table import Table

EVALUATORS: Table[Evaluator] = Table(
    {
        "attentive": "vidssl.evaluators.attentive:Attentive",
        "knn": "vidssl.evaluators.knn:KNN",
        "linear": "vidssl.evaluators.linear:Linear",
        "linear_sgd": "vidssl.evaluators.linear:LinearSGD",
        "retrieval": "vidssl.evaluators.knn:Retrieval",
    }
)


def __getattr__(name: str) -> object:
    return EVALUATORS.constructor(name, __name__)
