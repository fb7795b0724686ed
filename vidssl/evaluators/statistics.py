"""How sure an accuracy is."""

import math


def mcnemar(only_one: int, only_other: int) -> float:
    """Two-sided p-value that two classifiers tested on the same videos are as good as each other.

    McNemar's test in its exact form: of the videos that only one of them gets right, either is as likely to
    be the one as in tosses of a coin.

    Args:
        only_one: videos that only the first gets right.
        only_other: videos that only the second gets right.
    """
    tosses = only_one + only_other
    tail = sum(math.comb(tosses, heads) for heads in range(min(only_one, only_other) + 1))
    return min(1.0, 2 * tail / 2**tosses)


def wilson_interval(right: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share, by Wilson's score (1927): honest also near 0 and 1 and for few videos."""
    if total == 0:
        return 0.0, 1.0
    z = 1.959964
    share = right / total
    centre = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
