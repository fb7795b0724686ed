"""What ``vidssl eval`` is asked for besides protocols: weights, a network's keys, data, how to run."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from vidssl.config.recipe import RunSpec
from vidssl.config.schema import construct
from vidssl.config.strict_yaml import dump, override, parse

HOW_TO_RUN = ("device", "precision", "workers")


@dataclass(frozen=True)
class EvalWords:
    """The words ``key=value`` of an evaluation, by what they are for.

    Attributes:
        weights: of ``weights=``, None where there is none.
        network: of ``network.key=value``, without the ``network.``.
        data: recipe, run or checkpoint of ``data=`` whose labelled data are meant; None where there is none,
            or where the data themselves are written out.
        run: ``run.device=``, ``run.precision=`` and ``run.workers=``.
        rest: for the protocols.
    """

    weights: str | None
    network: tuple[str, ...]
    data: str | None
    run: tuple[str, ...]
    rest: tuple[str, ...]

    def for_protocol(self, finetunes: bool) -> tuple[str, ...]:
        """Overrides of a protocol; one that finetunes has a section ``run`` of its own."""
        return (*self.rest, *self.run) if finetunes else self.rest

    def changed(self, run: RunSpec) -> RunSpec:
        """How to run, where words say it otherwise.

        Raises:
            UsageError: if a value is of another type or not among the choices.
        """
        node = parse(dump({"run": asdict(run)}), lambda line: "run")
        for word in self.run:
            node = override(node, word)
        return construct(node.mapping()["run"], RunSpec)


def eval_words(overrides: Sequence[str]) -> EvalWords:
    """Sorts words; of several for one thing the last holds.

    Raises:
        UsageError: if what stands after ``data=`` is not valid YAML.
    """
    weights = data = None
    network, run, rest = [], [], []
    for word in overrides:
        key, _, value = word.partition("=")
        if key == "weights":
            weights = value
        elif key.startswith("network."):
            network.append(word.removeprefix("network."))
        elif key == "data" and isinstance(_plain(word, value), str):
            data = value
        elif key in (f"run.{name}" for name in HOW_TO_RUN):
            run.append(word)
        else:
            rest.append(word)
    return EvalWords(weights, tuple(network), data, tuple(run), tuple(rest))


def _plain(word: str, value: str) -> object:
    return parse(value, lambda line: f"override '{word}'", "data").value
