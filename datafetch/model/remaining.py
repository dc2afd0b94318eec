"""How long the rest of some work takes at its pace."""

from __future__ import annotations


def remaining_s(left: float, per_s: float) -> float | None:
    """How many seconds the rest will take; None if nothing is left, or nothing moves.

    Args:
        left: How much is left, in any unit.
        per_s: How much of it is done per second.
    """
    return left / per_s if left > 0 and per_s > 0 else None
