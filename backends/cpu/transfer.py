"""Moving runs of elements: as they are, or from one dtype to another by way of dense float32 on the stack.

A kernel that moves elements is compiled once, for all dtypes. How it does so is its route: words in its arguments that
hold the dtypes' sizes and the addresses of two native functions, one that expands rows of the source's dtype to float32
and one that writes float32 rows in the target's (none where elements are moved as they are).
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from graphrt.backends.cpu.args import word
from graphrt.backends.cpu.dequant import expander
from graphrt.backends.cpu.elements import PIECE, stack_floats
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.jit import Native, native
from graphrt.backends.cpu.memory import load_integer, store_integer
from graphrt.backends.cpu.quantize import writer
from graphrt.backends.cpu.simd import I8, I64, call
from graphrt.dtypes import DType

EXPAND, WRITE, SOURCE_BYTES, SOURCE_BLOCK, TARGET_BYTES, TARGET_BLOCK = range(6)


def route(source: DType, target: DType) -> list[int | Native]:
    """The words that `put` wants for a pair of dtypes."""
    sizes = [source.nbytes, source.block, target.nbytes, target.block]
    if source is target or (source.is_integer and target.is_integer):
        return [0, 0, *sizes]
    return [native(expand_rows, source.name), native(write_rows, target.name), *sizes]


def expand_address(dtype: DType) -> int | Native:
    """The word for a quantized dtype's expand_rows; 0 for plain floats, which kernels load themselves."""
    return native(expand_rows, dtype.name) if dtype.is_quantized else 0


def expand_rows(dtype):
    """Native, called with four words: expand `count` elements, `step` bytes apart, to float32 at `target`."""
    expand = expander(dtype)

    def run(words, ith, nth):
        expand(word(words, 0), word(words, 1), word(words, 2), word(words, 3))

    return run


def write_rows(dtype):
    """Native, called with four words: write `count` float32 at `source` as elements `step` bytes apart at `target`."""
    write = writer(dtype)

    def run(words, ith, nth):
        write(word(words, 0), word(words, 2), word(words, 3), word(words, 1))

    return run


@intrinsic
def call_with(typingctx, function, source, step, count, target):
    """Call one of these native functions."""

    def codegen(context, builder, signature, values):
        words = cgutils.alloca_once(builder, ir.ArrayType(I64, 4))
        for i, value in enumerate(values[1:]):
            builder.store(value, builder.gep(words, [I64(0), I64(i)]))
        kind = ir.FunctionType(ir.VoidType(), [I64, I64, I64])
        builder.call(builder.inttoptr(values[0], kind.as_pointer()), [builder.ptrtoint(words, I64), I64(0), I64(1)])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), codegen


@intrinsic
def copy_bytes(typingctx, target, source, count):
    """Copy `count` bytes; the two runs may not overlap."""

    def codegen(context, builder, signature, values):
        pointer = I8.as_pointer()
        places = [builder.inttoptr(value, pointer) for value in values[:2]]
        call(builder, "llvm.memcpy.p0.p0.i64", ir.VoidType(), *places, values[2], ir.Constant(ir.IntType(1), 0))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@helper
def put(route, target, target_step, source, source_step, count):
    """Bring `count` elements (whole blocks) from `source` to `target`, blocks the given bytes apart.

    Args: route: address of the route's words.
    """
    if word(route, EXPAND):
        _convert(route, target, target_step, source, source_step, count)
        return
    nbytes, items = word(route, TARGET_BYTES), count // word(route, TARGET_BLOCK)
    if nbytes != word(route, SOURCE_BYTES):
        _convert_integers(target, target_step, nbytes, source, source_step, word(route, SOURCE_BYTES), items)
    elif target_step == nbytes and source_step == nbytes:
        copy_bytes(target, source, items * nbytes)
    else:
        _move(target, target_step, source, source_step, nbytes, items)


@helper
def _convert(route, target, target_step, source, source_step, count):
    buffer = stack_floats(PIECE)
    source_block, target_block = word(route, SOURCE_BLOCK), word(route, TARGET_BLOCK)
    for start in range(0, count, PIECE):
        length = min(PIECE, count - start)
        call_with(word(route, EXPAND), source + start // source_block * source_step, source_step, length, buffer)
        call_with(word(route, WRITE), buffer, target_step, length, target + start // target_block * target_step)


@helper
def _move(target, target_step, source, source_step, nbytes, items):
    """Move items of any size that do not lie side by side."""
    if nbytes == 4:
        for i in range(items):
            store_integer(target + i * target_step, "i32", load_integer(source + i * source_step, "i32"))
    elif nbytes == 2:
        for i in range(items):
            store_integer(target + i * target_step, "i16", load_integer(source + i * source_step, "i16"))
    else:
        for i in range(items):
            copy_bytes(target + i * target_step, source + i * source_step, nbytes)


@helper
def _convert_integers(target, target_step, target_bytes, source, source_step, source_bytes, items):
    for i in range(items):
        store_signed(target + i * target_step, target_bytes, load_signed(source + i * source_step, source_bytes))


@helper
def load_signed(source, nbytes):
    """An integer of 1, 2, 4 or 8 bytes."""
    if nbytes == 4:
        return load_integer(source, "i32")
    if nbytes == 8:
        return load_integer(source, "i64")
    return load_integer(source, "i16") if nbytes == 2 else load_integer(source, "i8")


@helper
def store_signed(target, nbytes, value):
    """Store an integer in 1, 2, 4 or 8 bytes."""
    if nbytes == 4:
        store_integer(target, "i32", value)
    elif nbytes == 8:
        store_integer(target, "i64", value)
    elif nbytes == 2:
        store_integer(target, "i16", value)
    else:
        store_integer(target, "i8", value)
