"""Run kernels made for Arm in an emulator, and compare with the references; by hand, since it needs tools and minutes.

apt-get install qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross
python -m tests.backends.cpu.on_arm [WORDS IN A CASE'S NAME…]

A node's calls are packed for memory at BASE. A C program maps an image of it there, calls the kernels one after the
other with one thread, and writes down the result.
"""

from __future__ import annotations

import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np

from graphrt import Graph, Scheduler, Tensor, dtypes, ops
from graphrt.backends.cpu import host, registry
from graphrt.backends.cpu.program import pack
from graphrt.dtypes import Array
from graphrt.numerics import normalised_error
from graphrt.testing import Draw
from tests.backends.cpu.test_cross_targets import ARM, whole

BASE, ROOM = 1 << 42, 1 << 26
NMSE = 1e-4

_number = count(1)


def leaf(dtype: str, *shape: int) -> Tensor:
    number = next(_number)
    draw = Draw(lambda low, high: 1000 * number if high > 10_000 else low)
    return draw.tensor(shape, dtypes.get(dtype), layout="dense").named(f"leaf_{number}")


def attention(tokens: int) -> Tensor:
    """Two kv heads of 64 in f16, four queries for each."""
    cells, one = leaf("f16", 512, 2, 64), [1] * 512
    names = (f"where_{next(_number)}" for _ in range(4))
    values = (whole(*range(tokens)), whole(*[0] * tokens), whole(*range(512)), whole(*one, dtype=np.int64))
    seen = (value.named(name) for value, name in zip(values, names, strict=True))
    return ops.attention(leaf("f32", tokens, 8, 64), cells, cells, *seen, scale=0.125)


CASES: dict[str, Callable[[], Tensor]] = {
    **{
        f"mul_mat {dtype} x {columns}": lambda name=dtype.name, columns=columns: ops.mul_mat(
            leaf(name, 48, 512), leaf("f32", columns, 512)
        )
        for dtype in (*dtypes.FLOATS, *dtypes.QUANTIZED, *dtypes.INTERLEAVED.values())
        for columns in (1, 3, 40)
    },
    "attention of 1": lambda: attention(1),
    "attention of 64": lambda: attention(64),
    "rms_norm": lambda: ops.rms_norm(leaf("f32", 4, 64), leaf("f32", 64)),
    "soft_max": lambda: ops.soft_max(leaf("f32", 4, 64)),
    "swiglu": lambda: ops.swiglu(leaf("f32", 4, 64), leaf("f32", 4, 64)),
}


@dataclass
class Case:
    """A node's kernels (C symbol, place of its words), the memory that they work on, and the result's place in it."""

    name: str
    steps: list[tuple[str, int]]
    image: bytes
    counter: int
    result: int
    expected: Array


def lowered(name: str, node: Tensor, objects: dict[str, bytes]) -> Case:
    """A node as a case; object code is added to `objects`."""
    image, places = bytearray(64), {}

    def put(data: bytes) -> int:
        image.extend(bytes(-len(image) % 64))
        image.extend(data)
        return len(image) - len(data)

    def address_of(tensor: Tensor) -> int:
        root = tensor.root
        if root not in places:
            places[root] = put(bytes(root.extent) if root.data is None else np.ascontiguousarray(root.data).tobytes())
        return BASE + places[root] + (0 if root is tensor else tensor.offset)

    record, steps = registry.find(node.op), []
    result, scratch, counter = address_of(node) - BASE, put(bytes(record.workspace_of(node, 1))), put(bytes(64))
    for call in record.lower(node):
        words = pack(call, address_of, BASE + scratch + call.base, BASE + counter)
        steps.append((call.function.symbol, put(struct.pack(f"<{len(words)}q", *words))))
        if call.function.symbol not in objects:
            objects[call.function.symbol] = call.function.compile()
    expected = Scheduler(["reference"]).plan(Graph(node)).run()[0]
    return Case(name, steps, bytes(image), counter, result, expected)


def source(cases: list[Case], symbols: list[str]) -> str:
    """The C program."""
    lines = ["#include <stdio.h>", "#include <string.h>", "#include <sys/mman.h>"]
    lines += [f"void {symbol}(long, long, long);" for symbol in symbols]
    lines += ["int main(void) {", "FILE *file;"]
    lines += [f"char *base = mmap((void *){BASE}L, {ROOM}, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS |"]
    lines += ["MAP_FIXED, -1, 0);", "if (base == MAP_FAILED) return 1;"]
    for number, case in enumerate(cases):
        lines += [f'file = fopen("image{number}", "rb"); memset(base, 0, {ROOM});']
        lines += [f"if (fread(base, 1, {len(case.image)}, file) != {len(case.image)}) return 2;", "fclose(file);"]
        for symbol, words in case.steps:
            lines.append(f"{symbol}((long)base + {words}, 0, 1); *(long *)(base + {case.counter}) = 0;")
        lines += [f'file = fopen("result{number}", "wb");']
        lines += [f"fwrite(base + {case.result}, 1, {case.expected.nbytes}, file);", "fclose(file);"]
    return "\n".join([*lines, "return 0;", "}"])


def main(wanted: list[str]) -> int:
    """Run the cases; returns how many are wrong."""
    objects: dict[str, bytes] = {}
    with host.use_level("neon", ARM):
        names = [name for name in CASES if not wanted or any(word in name for word in wanted)]
        cases = [lowered(name, CASES[name](), objects) for name in names]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for symbol, code in objects.items():
            (folder / f"{symbol}.o").write_bytes(code)
        for number, case in enumerate(cases):
            (folder / f"image{number}").write_bytes(case.image)
        (folder / "main.c").write_text(source(cases, list(objects)))
        parts = ["main.c", *(f"{symbol}.o" for symbol in objects), "-o", "run", "-lm"]
        subprocess.run(["aarch64-linux-gnu-gcc", "-static", "-no-pie", *parts], cwd=folder, check=True)
        subprocess.run(["qemu-aarch64", "-cpu", "max", "./run"], cwd=folder, check=True)
        wrong = 0
        for number, case in enumerate(cases):
            found = np.fromfile(folder / f"result{number}", case.expected.dtype).reshape(case.expected.shape)
            error = normalised_error(found, case.expected)
            wrong += not error < NMSE
            print(f"{case.name:24s} {error:.1e}{'' if error < NMSE else ' WRONG'}")
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
