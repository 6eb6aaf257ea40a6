"""Weighted round-robin sequences; one source, compiled as ``_wrr_c`` through its ``.pxd``.

A sequence holds indexes into the server list; walking it in a circle gives each server its share
of the turns. Weights are divided by their greatest common divisor first, so 20:10 is as short as
2:1. Weights that would still need more than :data:`MAX_SEQUENCE` turns are scaled down to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from operator import index
from typing import Final

__all__ = ["MAX_SEQUENCE", "build_sequence", "build_smooth_sequence", "reduce_weights"]

#: Turns in one sequence. It bounds memory (32 KiB) and the work of a reload (turns times servers
#: for the smooth order); a share is then off by at most one turn, 0.025 %, plus the turn that every
#: server keeps however small its weight is.
MAX_SEQUENCE: Final = 4096


def build_sequence(weights: Sequence[int]) -> list[int]:
    """Each server's turns in a row: weights 2:1 give ``[0, 0, 1]``. O(turns).

    A weight of 0 gives no turn; no positive weight gives ``[]``. Raises ``ValueError`` for a
    negative weight and for more than :data:`MAX_SEQUENCE` positive ones.
    """
    turns = reduce_weights(weights)
    sequence: list[int] = []
    for i in range(len(turns)):
        sequence.extend([i] * turns[i])
    return sequence


def build_smooth_sequence(weights: Sequence[int]) -> list[int]:
    """The same shares, interleaved: weights 5:1:1 give ``[0, 0, 1, 0, 2, 0, 0]``.

    Every turn each server earns its weight, the richest (first of equals) is chosen and pays the
    sum of all: nginx's smooth weighted round-robin, O(turns * servers). Raises as
    :func:`build_sequence` does.
    """
    turns = reduce_weights(weights)
    total = sum(turns)
    credit = [0] * len(turns)
    sequence: list[int] = []
    for _ in range(total):
        best = -1
        highest = 0
        for i in range(len(turns)):
            weight = turns[i]
            earned = credit[i] + weight
            credit[i] = earned
            # A server without weight must not be the richest while all others are in debt.
            if weight and (best < 0 or earned > highest):
                best = i
                highest = earned
        credit[best] = highest - total
        sequence.append(best)
    return sequence


def reduce_weights(weights: Sequence[int]) -> list[int]:
    """Turns per server: weights over their GCD, at most :data:`MAX_SEQUENCE` together.

    Where they are scaled down, every positive weight keeps one turn and the others share the rest
    in proportion, the largest remainders first.
    """
    numbers = [index(weight) for weight in weights]
    for i, number in enumerate(numbers):
        if number < 0:
            raise ValueError(f"weight {i} must be at least 0, got {number}")
    divisor = gcd(*numbers)
    if divisor == 0:
        return numbers
    numbers = [number // divisor for number in numbers]
    if sum(numbers) <= MAX_SEQUENCE:
        return numbers
    return _scale(numbers)


def _scale(numbers: list[int]) -> list[int]:
    # Arbitrarily large weights come here, so this stays in Python's integers.
    positive = sum(1 for number in numbers if number)
    if positive > MAX_SEQUENCE:
        raise ValueError(f"at most {MAX_SEQUENCE} weights can be positive, got {positive}")
    total = sum(numbers)
    spare = MAX_SEQUENCE - positive
    turns = [(1 + number * spare // total) if number else 0 for number in numbers]
    left = MAX_SEQUENCE - sum(turns)
    by_remainder = sorted(range(len(numbers)), key=lambda i: -(numbers[i] * spare % total))
    for i in by_remainder[:left]:
        turns[i] += 1
    divisor = gcd(*turns)
    return [turn // divisor for turn in turns]
