"""What the processor can do at most: multiplications a second by loops that touch nothing but registers.

peak("int8", threads), peak("bf16", threads), peak("f32", threads)     operations a second, of which a product and its
                                                                        addition are two; None where the processor has
                                                                        no instruction for dot products of the kind
"""

from __future__ import annotations

import time
from functools import cache

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from graphrt.backends.cpu import bf16, host, jit, threads
from graphrt.backends.cpu.args import word
from graphrt.backends.cpu.memory import load_vector
from graphrt.backends.cpu.simd import F32, I8, I32, I64, call, mangled

CHAINS = 12  # sums under way at once: enough to hide an instruction's latency, few enough for 16 registers
ROUNDS = 100_000
ONES = 0x3F803F80  # two bfloat16 of 1; nearly 1 as a float32
PRODUCTS = {"f32": 1, "bf16": 2, "int8": 4}  # in one 32-bit lane of an instruction


def kinds() -> tuple[str, ...]:
    """The kinds that the present SIMD level has an instruction for."""
    level = host.level()
    has_int8 = level.has("dotprod") or level.has("avx512vnni" if level.name == "avx512" else "avxvnni")
    return ("f32", *["bf16"] * bf16.has_pairs(), *["int8"] * has_int8)


def _step(builder, kind: str, total, a, b):
    """total + a · b, lane by lane; a lane of bf16 holds two numbers, of int8 four."""
    if kind == "f32":
        return call(builder, f"llvm.fma.{mangled(a.type)}", a.type, a, b, total)
    if kind == "bf16":
        return bf16.add_products(builder, a, b, total)
    if host.level().has("dotprod"):
        return call(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", total.type, total, a, b)
    return call(builder, f"llvm.x86.avx512.vpdpbusd.{32 * total.type.count}", total.type, total, a, b)


@intrinsic(prefer_literal=True)
def _spin(typingctx, address, rounds, kind):
    """Add products to CHAINS sums, `rounds` times; factors and sums are loaded from the address, and stored there."""
    name = kind.literal_value

    def codegen(context, builder, signature, values):
        lanes = host.level().lanes
        sum_type = ir.VectorType(I32 if name == "int8" else F32, lanes)
        is_bytes = name == "int8" and host.level().has("dotprod")
        factor_type = ir.VectorType(I8, 4 * lanes) if is_bytes else sum_type
        a, b = (load_vector(builder, values[0], factor_type.element, factor_type.count) for _ in range(2))
        places = [builder.add(values[0], I64(4 * lanes * number)) for number in range(CHAINS)]
        starts = [load_vector(builder, place, sum_type.element, lanes) for place in places]
        before, loop, after = builder.block, builder.append_basic_block("loop"), builder.append_basic_block("after")
        builder.branch(loop)
        builder.position_at_end(loop)
        index = builder.phi(I64)
        sums = [builder.phi(sum_type) for _ in starts]
        results = [_step(builder, name, total, a, b) for total in sums]
        following = builder.add(index, I64(1))
        for phi, first, again in zip([index, *sums], [I64(0), *starts], [following, *results], strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(again, loop)
        builder.cbranch(builder.icmp_signed("<", following, values[1]), loop, after)
        builder.position_at_end(after)
        for place, result in zip(places, results, strict=True):
            builder.store(result, builder.inttoptr(place, sum_type.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, kind), codegen


def spin(kind: str) -> jit.Kernel:
    """Native: word 0 is the memory of a thread's sums, word 1 its bytes, word 2 the number of rounds."""

    def run(args, ith, nth):
        _spin(word(args, 0) + ith * word(args, 1), word(args, 2), kind)

    return run


class Peak:
    """Runs the loop of a kind with so many threads.

    Attributes:
        memory: [threads, CHAINS, lanes] int32, the bits of the sums; the first vector of each thread is its factors.
    """

    def __init__(self, kind: str, size: int, rounds: int = ROUNDS) -> None:
        lanes = host.level().lanes
        self.operations = 2 * PRODUCTS[kind] * lanes * CHAINS * rounds * size
        self.memory = np.full((size, CHAINS, lanes), ONES, np.int32)
        self._pool = threads.pool(size)
        self._words = np.array([self.memory.ctypes.data, self.memory[0].nbytes, rounds], np.int64)
        self._calls = np.array([jit.native(spin, kind).address, self._words.ctypes.data], np.int64)

    def run(self) -> None:
        self._pool.run(self._calls.ctypes.data, 1)

    def rate(self, runs: int = 3) -> float:
        """Operations a second, of the shortest of several runs."""
        best = float("inf")
        for _ in range(runs):
            start = time.perf_counter()
            self.run()
            best = min(best, time.perf_counter() - start)
        return self.operations / best


@cache
def _peak(kind: str, size: int) -> Peak:
    return Peak(kind, size)


def peak(kind: str, size: int, runs: int = 3) -> float | None:
    """Operations a second of "f32", "bf16" or "int8" with `size` threads; None where there is no instruction for it."""
    return _peak(kind, size).rate(runs) if kind in kinds() else None


if __name__ == "__main__":
    cores = threads.available_cores()
    for each in PRODUCTS:
        for count in (1, cores):
            found = peak(each, count, runs=9)
            print(f"{each:5} {count} threads: " + ("no instruction" if found is None else f"{found / 1e9:.0f} GOP/s"))
