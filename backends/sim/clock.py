"""A virtual clock: what the work would have taken on a device of given rates."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from graphrt.op import Cost

UPLOAD, DOWNLOAD = "upload", "download"


@dataclass(frozen=True)
class Rates:
    """Operations per second, bytes per second of the device's memory, and of its link to the host."""

    flops: float
    bandwidth: float
    link: float


@dataclass
class Host:
    """The host's virtual time in seconds: it moves on when the host waits for a device; devices may share it."""

    now: float = 0.0

    def reach(self, time: float) -> None:
        """Move on to a time, unless it is over."""
        self.now = max(self.now, time)


@dataclass
class Clock:
    """Seconds, bytes and number of every kind of work since the clock began: each op's name, "upload", "download".

    Args:
        now: virtual time at which the work done so far ended; later work begins then, or when the host began it, or
            when the event passed that it waits for, whichever is last.
    """

    rates: Rates
    host: Host = field(default_factory=Host)
    now: float = 0.0
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    nbytes: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    count: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))

    @property
    def total(self) -> float:
        """All seconds of work."""
        return sum(self.seconds.values())

    def beside(self) -> Clock:
        """A clock for what goes on beside this one's work; both count together."""
        return Clock(self.rates, self.host, self.now, self.seconds, self.nbytes, self.count)

    def reach(self, time: float) -> None:
        """Move on to a time, idle, unless it is over."""
        self.now = max(self.now, time)

    def compute(self, op: str, cost: Cost) -> None:
        """Advance by one node: as long as its operations or its bytes take, whichever is longer."""
        self._add(op, max(cost.flops / self.rates.flops, cost.nbytes / self.rates.bandwidth), cost.nbytes)

    def copy(self, direction: str, nbytes: int) -> None:
        """Advance by one copy over the link."""
        self._add(direction, nbytes / self.rates.link, nbytes)

    def reset(self) -> None:
        """Count again from zero; time goes on."""
        for counts in (self.seconds, self.nbytes, self.count):
            counts.clear()

    def report(self) -> str:
        """One line for each kind of work, the longest first."""
        return "\n".join(
            f"{kind}: {self.count[kind]} times, {self.nbytes[kind]:,} bytes, {1e6 * seconds:.3g} µs"
            for kind, seconds in sorted(self.seconds.items(), key=lambda item: -item[1])
        )

    def _add(self, kind: str, seconds: float, nbytes: int) -> None:
        self.now += seconds
        self.seconds[kind] += seconds
        self.nbytes[kind] += nbytes
        self.count[kind] += 1
