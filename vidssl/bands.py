"""Where a metric lies as long as a run is sound."""

from dataclasses import dataclass

_WITHIN = 0.01  # of `apart_from`


@dataclass(frozen=True, kw_only=True)
class Band:
    """A band that a logged metric keeps to in a sound run, and what it means when it does not.

    Of ``lowest``, ``apart_from`` and ``share_of_best`` one is given.

    Attributes:
        metric: its name in the log.
        says: what has been the case while the metric was outside, a main clause in the perfect tense.
        cure: what helps, a sentence without its full stop; empty where nothing is known to.
        lowest: at least this is sound.
        apart_from: values within 1 % of this are not.
        share_of_best: at least this share of the highest value there has been is sound.
        zero: where that share is counted from; 1 for RankMe, which has 1 for features that are all alike.
        after: share of the run that is left out of account, also for the highest value.

    Raises:
        ValueError: if not exactly one of the three is given.
    """

    metric: str
    says: str
    cure: str = ""
    lowest: float | None = None
    apart_from: float | None = None
    share_of_best: float | None = None
    zero: float = 0.0
    after: float = 0.0

    def __post_init__(self) -> None:
        given = [self.lowest, self.apart_from, self.share_of_best]
        if sum(value is not None for value in given) != 1:
            raise ValueError(
                f"a band of '{self.metric}' has one of lowest, apart_from and share_of_best, got {given}"
            )

    def left(self, value: float, best: float) -> bool:
        """Whether a value lies outside, which nan never does; ``best`` is the highest there has been."""
        if self.lowest is not None:
            return value < self.lowest
        if self.apart_from is not None:
            return abs(value - self.apart_from) < _WITHIN * abs(self.apart_from)
        return value - self.zero < (self.share_of_best or 0.0) * (best - self.zero)

    def edge(self, best: float) -> str:
        """What a sound value would be, in words."""
        if self.lowest is not None:
            return f"sound from {self.lowest:.3g}"
        if self.apart_from is not None:
            return f"within {_WITHIN:.0%} of {self.apart_from:.4g}"
        return f"its highest was {best:.3g}"
