"""A split as a native program: every call's arguments packed into int64 words, run by one pool of threads."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Sequence

import numpy as np

from graphrt.backend import Program, Split
from graphrt.backends.cpu import jit, registry
from graphrt.backends.cpu.registry import MAX_RANK, Call
from graphrt.backends.cpu.threads import Pool
from graphrt.errors import KernelError
from graphrt.tensor import Tensor

Words = list[int]
AddressOf = Callable[[Tensor], int]


def tensor_words(tensor: Tensor | None, address: int) -> Words:
    """The nine words of a tensor: address, sizes and byte strides, padded in front to four axes."""
    if tensor is None:
        return [0] * (1 + 2 * MAX_RANK)
    pad = MAX_RANK - tensor.rank
    if pad < 0:
        raise KernelError(f"[cpu] {tensor!r} has {tensor.rank} axes; kernels take at most {MAX_RANK}")
    outer = tensor.extent
    return [address, *[1] * pad, *map(int, tensor.shape), *[outer] * pad, *map(int, tensor.strides)]


def scalar_word(value: float) -> int:
    """An int as itself, a float as the bits of float64."""
    if isinstance(value, float):
        return int(struct.unpack("<q", struct.pack("<d", value))[0])
    return int(value)


def pack(call: Call, address_of: AddressOf, workspace: int, counter: int) -> Words:
    """The words of one call (see args.py)."""
    words: Words = []
    for tensor in call.tensors:
        words += tensor_words(tensor, 0 if tensor is None else address_of(tensor))
    return [*words, *map(scalar_word, call.scalars), workspace, counter, *call.extras]


class CpuProgram(Program):
    """The calls of a split, ready to run any number of times.

    Args:
        calls: each with its packed words.
        keep: whatever must live as long as the program, because the words hold its address.
    """

    def __init__(self, calls: Sequence[tuple[Call, Words]], pool: Pool, keep: object = None) -> None:
        self.labels = [call.function.label for call, _ in calls]
        starts = np.cumsum([0, *(len(words) for _, words in calls)])
        self._words = np.array([word for _, words in calls for word in words], np.int64)
        base = self._words.ctypes.data
        pairs = [
            (call.function.address, base + 8 * int(start)) for (call, _), start in zip(calls, starts, strict=False)
        ]
        self._calls = np.array(pairs, np.int64).reshape(-1, 2)
        self._address, self._count = self._calls.ctypes.data, len(calls)
        self._pool, self._keep = pool, keep

    def run(self) -> None:
        """Run every call once, on all threads of the pool."""
        self._pool.run(self._address, self._count)

    def times(self) -> list[tuple[str, float]]:
        """Run call by call; returns each native function's label and its seconds."""
        found = []
        for i, label in enumerate(self.labels):
            start = time.perf_counter()
            self._pool.run(self._address + 16 * i, 1)
            found.append((label, time.perf_counter() - start))
        return found


def compile_split(split: Split, pool: Pool) -> CpuProgram:
    """Lower every node of a split to calls, make their native functions ready, and pack their arguments.

    Raises: KernelError if a node has no kernel or a kernel does not compile.
    """
    lowered: list[tuple[Tensor, Call]] = []
    for node in split.nodes:
        record = registry.find(node.op) if node.op is not None else None
        if record is None:
            raise KernelError(f"[cpu] {node!r} has no kernel on this backend; place it on the reference backend")
        lowered += [(node, call) for call in record.lower(node)]
    jit.load_all((call.function for _, call in lowered), jit.show_progress)

    def address_of(tensor: Tensor) -> int:
        location = split.location[tensor]
        nbytes = location.buffer.nbytes
        if not 0 <= location.offset <= nbytes - tensor.extent:
            raise KernelError(
                f"[cpu] {tensor!r} needs bytes {location.offset} to {location.offset + tensor.extent} of a buffer of "
                f"{nbytes}; its strides {list(tensor.strides)} lead outside"
            )
        return location.address

    packed = []
    for node, call in lowered:
        scratch = split.workspace.get(node)
        words = pack(call, address_of, 0 if scratch is None else scratch.address, pool.counter_address)
        packed.append((call, words))
    return CpuProgram(packed, pool, keep=split)
