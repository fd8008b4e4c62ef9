"""Atomics, waiting, and the barrier between ops, as seen by native code."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from graphrt.backends.cpu import host
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.simd import I32, I64, call

VOID = ir.VoidType()

# Waiting steps through three ways: busy (quick to notice), giving the core to others, and sleeping. Without the other
# processes that may want it, a yielded core is back at once; with them, only a thread that sleeps leaves its core to
# those that are waited for. A sleeper is woken on Linux. Elsewhere it naps, and the first two ways must last much
# longer than a nap: else a thread that napped makes the others nap, and so on at every barrier.
YIELDS, YIELDS_BEFORE_NAPS = 100, 5000
NAP_MICROSECONDS = 50
FUTEX_CALLS = {"x86_64": 202, "aarch64": 98}  # number of Linux' system call
FUTEX_WAIT, FUTEX_WAKE = 128, 129  # within one process


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
        call(builder, "SwitchToThread" if _is_windows() else "sched_yield", I32)
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def yields_before_sleep(typingctx):
    """How often to yield before sleeping."""

    def codegen(context, builder, signature, values):
        return I64(YIELDS if _futex_call() else YIELDS_BEFORE_NAPS)

    return types.int64(), codegen


@intrinsic
def sleep_while(typingctx, address, value):
    """Sleep until `wake_all` if the int64 at the address, whose low half alone counts, is `value`; else return."""

    def codegen(context, builder, signature, values):
        if _futex_call():
            _futex(builder, values[0], FUTEX_WAIT, values[1])
        elif _is_windows():
            call(builder, "Sleep", VOID, I32(1))
        else:
            call(builder, "usleep", I32, I32(NAP_MICROSECONDS))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def wake_all(typingctx, address):
    """Wake every thread that sleeps while the int64 at the address is what it was."""

    def codegen(context, builder, signature, values):
        if _futex_call():
            _futex(builder, values[0], FUTEX_WAKE, I64(2**31 - 1))
        return context.get_dummy_value()

    return types.void(types.int64), codegen


def _is_windows() -> bool:
    return "windows" in host.level().machine.triple


def _futex_call() -> int | None:
    """The number of the system call that sleeps and wakes; None where there is none."""
    triple = host.level().machine.triple
    return FUTEX_CALLS.get(triple.partition("-")[0]) if "linux" in triple else None


def _futex(builder, address, operation: int, value) -> None:
    function = builder.module.globals.get("syscall")
    if function is None:
        function = ir.Function(builder.module, ir.FunctionType(I64, [I64], var_arg=True), "syscall")
    low = builder.and_(value, I64(2**32 - 1))
    builder.call(function, [I64(_futex_call()), address, I64(operation), low, I64(0), I64(0), I64(0)])


@helper
def wait_once(tries, spins):
    """One step of waiting awake."""
    if tries < spins:
        relax()
    else:
        yield_core()


@helper
def barrier(arrived, phase, counter, nth, spins):
    """Wait until all `nth` threads are here. The last one resets the claim counter and lets the others go.

    Args: addresses, each on a cache line of its own, of two int64 (threads that are here, threads that sleep) and of
        one each.
    """
    if nth == 1:
        atomic_store(counter, 0)
        return
    before = atomic_load(phase)
    if atomic_add(arrived, 1) == nth - 1:
        atomic_store(arrived, 0)
        atomic_store(counter, 0)
        atomic_store(phase, before + 1)
        # Whoever goes to sleep from here on sees the new phase and does not.
        if atomic_load(arrived + 8) > 0:
            wake_all(phase)
        return
    tries = 0
    while atomic_load(phase) == before:
        if tries < spins + yields_before_sleep():
            wait_once(tries, spins)
            tries += 1
        else:
            atomic_add(arrived + 8, 1)
            sleep_while(phase, before)
            atomic_add(arrived + 8, -1)
