"""How sure an accuracy is."""

import math


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
