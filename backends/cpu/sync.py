"""Atomics, waiting, and the barrier between ops, as seen by native code."""

from __future__ import annotations

import sys

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from graphrt.backends.cpu import host
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.simd import I32, I64, call

VOID = ir.VoidType()

# Waiting steps through three ways: busy (quick to notice), giving the core to others, and sleeping. The first two must
# last much longer than a nap: else a thread that napped makes the others nap, and so on at every barrier.
YIELDS = 5000
NAP_MICROSECONDS = 50


def _word(builder, address):
    return builder.inttoptr(address, I64.as_pointer())


@intrinsic
def atomic_add(typingctx, target, amount):
    """Add to the int64 at `target`; returns what stood there before."""

    def codegen(context, builder, signature, values):
        return builder.atomic_rmw("add", _word(builder, values[0]), values[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def atomic_load(typingctx, source):
    """The int64 at `source`, with everything its writer wrote before it."""

    def codegen(context, builder, signature, values):
        return builder.load_atomic(_word(builder, values[0]), "seq_cst", 8)

    return types.int64(types.int64), codegen


@intrinsic
def atomic_store(typingctx, target, value):
    """Write the int64 at `target` after everything written before."""

    def codegen(context, builder, signature, values):
        builder.store_atomic(values[1], _word(builder, values[0]), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def atomic_exchange_if(typingctx, target, expected, value):
    """Write `value` at `target` if `expected` stands there; whether it did."""

    def codegen(context, builder, signature, values):
        pair = builder.cmpxchg(_word(builder, values[0]), values[1], values[2], "seq_cst", "seq_cst")
        return builder.extract_value(pair, 1)

    return types.boolean(types.int64, types.int64, types.int64), codegen


@intrinsic
def call_native(typingctx, function, args, ith, nth):
    """Call a native function by its address."""

    def codegen(context, builder, signature, values):
        kind = ir.FunctionType(VOID, [I64, I64, I64])
        builder.call(builder.inttoptr(values[0], kind.as_pointer()), values[1:])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), codegen


@intrinsic
def relax(typingctx):
    """Tell the processor that this is a waiting loop."""

    def codegen(context, builder, signature, values):
        features = host.level().machine.features
        if "sse2" in features:
            call(builder, "llvm.x86.sse2.pause", VOID)
        elif "neon" in features:
            call(builder, "llvm.aarch64.hint", VOID, I32(1))
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def yield_core(typingctx):
    """Let another thread have the core."""

    def codegen(context, builder, signature, values):
        if sys.platform == "win32":
            call(builder, "SwitchToThread", I32)
        else:
            call(builder, "sched_yield", I32)
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def nap(typingctx):
    """Sleep for a moment."""

    def codegen(context, builder, signature, values):
        if sys.platform == "win32":
            call(builder, "Sleep", VOID, I32(1))
        else:
            call(builder, "usleep", I32, I32(NAP_MICROSECONDS))
        return context.get_dummy_value()

    return types.void(), codegen


@helper
def wait_once(tries, spins):
    """One step of waiting: the more tries before, the cheaper for the machine."""
    if tries < spins:
        relax()
    elif tries < spins + YIELDS:
        yield_core()
    else:
        nap()


@helper
def barrier(arrived, phase, counter, nth, spins):
    """Wait until all `nth` threads are here. The last one resets the claim counter and lets the others go.

    Args: addresses of the three int64, each on a cache line of its own.
    """
    if nth == 1:
        atomic_store(counter, 0)
        return
    before = atomic_load(phase)
    if atomic_add(arrived, 1) == nth - 1:
        atomic_store(arrived, 0)
        atomic_store(counter, 0)
        atomic_store(phase, before + 1)
        return
    tries = 0
    while atomic_load(phase) == before:
        wait_once(tries, spins)
        tries += 1
