"""Hold out a share of each class in a way that no random generator and no version changes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from math import floor


def is_held_out(targets: Iterable[int], fraction: float) -> list[bool]:
    """Mark evenly spaced images of each class.

    Args:
        targets: The class of each image.
        fraction: The share to hold out, in (0, 1); with 0.2 every fifth image of a class.

    Returns:
        A mark for each image, as many of class ``c`` as ``fraction`` of it, rounded down.
    """
    seen: dict[int, int] = defaultdict(int)
    marks = []
    for target in targets:
        marks.append(_share(seen[target] + 1, fraction) > _share(seen[target], fraction))
        seen[target] += 1
    return marks


def _share(count: int, fraction: float) -> int:
    # 100 * 0.29 is 28.999999999999996 in floating point.
    return floor(count * fraction + 1e-9)
