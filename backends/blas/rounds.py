"""Does a product through BLAS pay? Timed in turns with the CPU kernels, on a machine that does other things as well.

BLAS's threads spin for up to a tenth of a second after a product, the CPU backend's for a millisecond after a run, and
whoever comes next shares the cores with them. So each turn waits until the process is quiet; and a turn of BLAS is
timed with a product of the CPU kernels after it: in a graph there is always something that follows and is slowed down.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

ROUNDS, LEAST_ROUNDS = 7, 3
LOSSES = 1  # allowed in ROUNDS; none in fewer
MARGIN = 0.95  # of the CPU kernels' time; below it BLAS counts as faster
LONGEST_WAIT, LOOK = 0.5, 0.005  # seconds

Run = Callable[[], object]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Round:
    """Seconds of two turns, one right after the other.

    Args:
        mixed: a product through BLAS, and the same by the CPU kernels.
        kernels: two products by the CPU kernels.
    """

    mixed: float
    kernels: float

    @property
    def ratio(self) -> float:
        """What a product through BLAS costs, the slower next product included, over one by the CPU kernels."""
        return 2 * self.mixed / self.kernels - 1


def take_turns(
    mixed: Run, kernels: Run, *, until: float, losses: int = LOSSES, clock: Clock = time.perf_counter
) -> list[Round]:
    """Time the two in rounds; which comes first changes, so that neither always follows the other.

    Args:
        until: when to end by the clock, before ROUNDS but not before LEAST_ROUNDS.
        losses: rounds that BLAS may lose before nothing can help it, which ends the comparison too.
    """
    rounds: list[Round] = []
    while len(rounds) < ROUNDS and _losses(rounds) <= losses and (len(rounds) < LEAST_ROUNDS or clock() < until):
        if len(rounds) % 2:
            last = _turn(kernels, clock)
            rounds.append(Round(_turn(mixed, clock), last))
        else:
            rounds.append(Round(_turn(mixed, clock), _turn(kernels, clock)))
    return rounds


def blas_pays(rounds: Sequence[Round]) -> bool:
    """Whether BLAS won by the margin in nearly every round, and by the fastest turns of all of them."""
    allowed = LOSSES if len(rounds) >= ROUNDS else 0
    return _losses(rounds) <= allowed and fastest(rounds).ratio < MARGIN


def fastest(rounds: Sequence[Round]) -> Round:
    """The fastest turn of each, whatever the round."""
    return Round(min(each.mixed for each in rounds), min(each.kernels for each in rounds))


def _losses(rounds: Sequence[Round]) -> int:
    return sum(each.ratio >= MARGIN for each in rounds)


def _turn(run: Run, clock: Clock) -> float:
    """Seconds of a run in a quiet process, after one that wakes its threads."""
    wait_until_quiet()
    run()
    start = clock()
    run()
    return clock() - start


def wait_until_quiet() -> None:
    """Sleep until no thread of the process is at work or spins; half a second at most."""
    end = time.perf_counter() + LONGEST_WAIT
    while time.perf_counter() < end:
        used = time.process_time()
        time.sleep(LOOK)
        if time.process_time() - used < LOOK / 5:
            return
