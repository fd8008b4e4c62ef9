"""What launches are cut for: how many processors a device has, and how much shared memory a block may take.

Whoever lowers a node is given the node alone; the backend says here what it is lowered for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Hardware:
    """A device's measures; those of an H200 unless given.

    Args:
        processors: streaming multiprocessors.
        shared_bytes: of shared memory that a block may have, and thus about what a processor has: 227 KiB on an H200,
            163 on an A100, 99 on GPUs for desktops.
        without_library: says why products cannot be left to a library (launch.Gemm), "" if they can. It is asked when
            the first one would be, since libraries are large.
        has_wgmma: whether tensor cores read shared memory by themselves: compute capability 9.0, and no other.
    """

    processors: int = 132
    shared_bytes: int = 227 << 10
    without_library: Callable[[], str] = field(default=str, compare=False)
    has_wgmma: bool = False


_present: ContextVar[Hardware] = ContextVar("hardware", default=Hardware())  # noqa: B039  it is frozen


def present() -> Hardware:
    """What nodes are lowered for at the moment."""
    return _present.get()


@contextmanager
def made_for(hardware: Hardware) -> Iterator[None]:
    """Lower for this hardware."""
    before = _present.set(hardware)
    try:
        yield
    finally:
        _present.reset(before)
