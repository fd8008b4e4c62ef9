"""A split as a native program: every call's arguments packed into int64 words, run by one pool of threads."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np

from graphrt.backend import Group, Program, Split
from graphrt.backends.cpu import jit, registry
from graphrt.backends.cpu.barriers import ALL, TOGETHER, Span, Touched, turns_of
from graphrt.backends.cpu.registry import Call
from graphrt.backends.cpu.threads import Pool
from graphrt.errors import KernelError
from graphrt.kernels import MAX_RANK
from graphrt.patterns import Fused
from graphrt.tensor import Tensor

Words = list[int]
AddressOf = Callable[[Tensor], int]
LINE = 64  # bytes of a cache line: a counter has one to itself


def tensor_words(tensor: Tensor | None, address: int) -> Words:
    """The nine words of a tensor: address, sizes and byte strides, padded in front to four axes."""
    if tensor is None:
        return [0] * (1 + 2 * MAX_RANK)
    pad = MAX_RANK - tensor.rank
    if pad < 0:
        raise KernelError(f"[cpu] {tensor!r} has {tensor.rank} axes; kernels take at most {MAX_RANK}")
    outer = tensor.extent
    return [address, *[1] * pad, *map(int, tensor.shape), *[outer] * pad, *map(int, tensor.strides)]


def scalar_word(value: float | jit.Native) -> int:
    """An int as itself, a float as the bits of float64, a native function as its address."""
    if isinstance(value, float):
        return int(struct.unpack("<q", struct.pack("<d", value))[0])
    return value.address if isinstance(value, jit.Native) else int(value)


def pack(call: Call, address_of: AddressOf, workspace: int, counter: int) -> Words:
    """The words of one call (see args.py)."""
    words: Words = []
    for tensor in call.tensors:
        words += tensor_words(tensor, 0 if tensor is None else address_of(tensor))
    return [*words, *map(scalar_word, call.scalars), workspace, counter, *map(scalar_word, call.extras)]


def touched(call: Call, address_of: AddressOf, workspace: Span) -> Touched:
    """The memory that a call reads and writes."""
    start, _ = workspace
    reads = [(start + first, start + last) for first, last in call.reads]
    writes = [workspace] if call.writes is None else [(start + first, start + last) for first, last in call.writes]
    for number, tensor in enumerate(call.tensors):
        if tensor is not None and tensor.extent:
            first = address_of(tensor)
            (writes if number < call.results else reads).append((first, first + tensor.extent))
    return Touched(reads, writes, call.work)


class CpuProgram(Program):
    """The calls of a split, ready to run any number of times.

    Args:
        calls: each with the memory that it touches and a function that packs its words, given its counter's address.
        keep: whatever must live as long as the program, because the words hold its address.
    """

    def __init__(
        self, calls: Sequence[tuple[Call, Touched, Callable[[int], Words]]], pool: Pool, keep: object = None
    ) -> None:
        self.labels = [call.function.label for call, *_ in calls]
        turns = turns_of([touches for _, touches, _ in calls], pool.size)
        self.barriers = sum(turn.barrier for turn in turns)
        self.summary = f"{len(calls)} native calls, {self.barriers} barriers between {pool.size} threads"
        self._counters = _lines(2 * TOGETHER + pool.size)
        counters = [
            self._counters.ctypes.data + LINE * (turn.counter if turn.thread == ALL else 2 * TOGETHER + turn.thread)
            for turn in turns
        ]
        packed = [pack_words(counter) for (*_, pack_words), counter in zip(calls, counters, strict=True)]
        starts = np.cumsum([0, *(len(words) for words in packed)])
        self._words = np.array([word for words in packed for word in words], np.int64)
        base = self._words.ctypes.data
        pairs = [
            (call.function.address, base + 8 * int(start)) for (call, *_), start in zip(calls, starts, strict=False)
        ]
        self._calls = np.array(pairs, np.int64).reshape(-1, 2)
        steps = [(turn.thread, counter, turn.barrier) for turn, counter in zip(turns, counters, strict=True)]
        self._turns = np.array(steps, np.int64).reshape(-1, 3)
        self._pool, self._keep = pool, keep

    def run(self) -> None:
        """Run every call once, on all threads of the pool."""
        self._pool.run(self._calls.ctypes.data, len(self._calls), self._turns.ctypes.data)

    def times(self) -> list[tuple[str, float]]:
        """Run call by call; returns each native function's label and its seconds."""
        found = []
        alone = self._turns.copy()
        alone[:, 2] = 1
        for i, label in enumerate(self.labels):
            start = time.perf_counter()
            self._pool.run(self._calls[i:].ctypes.data, 1, alone[i:].ctypes.data)
            found.append((label, time.perf_counter() - start))
        return found


def _lines(count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """So many cache lines of zeros."""
    raw = np.zeros((count + 1) * LINE // 8, np.int64)
    return raw[-(raw.ctypes.data // 8) % (LINE // 8) :]


def calls_of(group: Group) -> list[Call]:
    """The calls of a group.

    Raises: KernelError if a node has no kernel.
    """
    if isinstance(group, Fused):
        return group.lower()
    (node,) = group.nodes
    record = registry.find(node.op) if node.op is not None else None
    if record is None:
        raise KernelError(f"[cpu] {node!r} has no kernel on this backend; place it on the reference backend")
    return record.lower(node)


def functions_of(groups: Iterable[Group]) -> list[jit.Native]:
    """The native functions that programs of these groups need.

    Raises: as `calls_of`.
    """
    return [function for group in groups for call in calls_of(group) for function in call.functions]


def compile_split(split: Split, pool: Pool) -> CpuProgram:
    """Lower every group of a split to calls, make their native functions ready, and pack their arguments.

    Raises: KernelError if a node has no kernel or a kernel does not compile.
    """
    lowered = [(group, call) for group in split.groups for call in calls_of(group)]
    jit.load_all((function for _, call in lowered for function in call.functions), jit.show_progress)

    def address_of(tensor: Tensor) -> int:
        location = split.location[tensor]
        nbytes = location.buffer.nbytes
        if not 0 <= location.offset <= nbytes - tensor.extent:
            raise KernelError(
                f"[cpu] {tensor!r} needs bytes {location.offset} to {location.offset + tensor.extent} of a buffer of "
                f"{nbytes}; its strides {list(tensor.strides)} lead outside"
            )
        return location.address

    calls = []
    for group, call in lowered:
        place = split.workspace.get(group.nodes[0])
        scratch = 0 if place is None else place.address
        touches = touched(call, address_of, (scratch, scratch + group.workspace if scratch else 0))
        calls.append((call, touches, partial(pack, call, address_of, scratch + call.base)))
    return CpuProgram(calls, pool, keep=split)
