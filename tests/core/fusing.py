"""A backend that runs any neighbours as one, to find out whether whole runs and memory plans allow it."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from graphrt.backend import Group, Program, Split
from graphrt.backends.reference import ReferenceBackend
from graphrt.dtypes import Array
from graphrt.fusion import Readers
from graphrt.tensor import Tensor


class FusingBackend(ReferenceBackend):
    """The references' results, in groups of up to `most` nodes, cut where the seed says.

    A group reads its sources from memory again for each node, after the results of the nodes before have been written,
    as a kernel may that works row by row; results that nothing outside reads it keeps to itself.
    """

    name = "fusing"

    def __init__(self, seed: int, most: int = 5) -> None:
        self._random, self._most = random.Random(seed), most

    def workspace(self, node: Tensor) -> int:
        return self._random.choice([0, 0, 100])

    def fuse(self, nodes: Sequence[Tensor], readers: Readers) -> list[Group]:
        groups, rest = [], list(nodes)
        while rest:
            count = self._random.randint(1, self._most)
            groups.append(Group(tuple(rest[:count]), "neighbours" if count > 1 else "", self._random.choice([0, 300])))
            rest = rest[count:]
        return groups

    def compile(self, split: Split) -> Program:
        return _FusingProgram(split)


class _FusingProgram(Program):
    summary = "run as one by the references"

    def __init__(self, split: Split) -> None:
        self._split = split

    def run(self) -> None:
        for group in self._split.groups:
            room = self._split.workspace.get(group.nodes[0])
            kept: dict[Tensor, Array] = {}
            for node in group.nodes:
                assert node.op is not None
                value = node.op.evaluate(node, [None if src is None else self._array(src, kept) for src in node.srcs])
                if node.root is not node:
                    self._array(node, kept)[...] = value
                elif node in self._split.location:
                    self._split.location[node].array(node)[...] = value
                else:
                    kept[node] = np.frombuffer(bytearray(np.ascontiguousarray(value).tobytes()), np.uint8)
                if room is not None and group.workspace:
                    room.buffer.write(room.offset, np.full(group.workspace, 0xFF, np.uint8))

    def _array(self, tensor: Tensor, kept: dict[Tensor, Array]) -> Array:
        if tensor.root in kept:
            return tensor.array_over(kept[tensor.root], tensor.offset)
        return self._split.location[tensor].array(tensor)
