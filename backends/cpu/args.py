"""How a kernel reads its packed arguments.

A kernel is called as `kernel(args, ith, nth)`. `args` is the address of int64 words:

    per tensor, output first, then the sources:  address, 4 sizes, 4 byte strides      (9 words)
    the scalars:                                 one word each, floats as float64 bits
    workspace, counter:                          address of the node's workspace (0 if none); address of a shared
                                                 counter that is 0 when the call starts (see `claim`)
    extras:                                      whatever the kernel's own lowering adds

Sizes and strides are in NumPy order, slowest first, padded in front with size 1. An absent source has address 0.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.sync import atomic_add

RANK = 4
TENSOR_WORDS = 1 + 2 * RANK

_I64 = ir.IntType(64)
_F64 = ir.DoubleType()


def _pointer(builder, address, element):
    return builder.inttoptr(address, element.as_pointer())


def load_word(builder, args, index, element=_I64):
    """Load the word at an index, given as a constant or a value."""
    return builder.load(builder.gep(_pointer(builder, args, element), [index]), align=8)


def _word_of_tensor(builder, tensor, offset: int):
    return builder.add(builder.mul(tensor, _I64(TENSOR_WORDS)), _I64(offset))


@intrinsic
def word(typingctx, args, index):
    """The int64 word at `index`."""

    def codegen(context, builder, signature, values):
        return load_word(builder, *values)

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def address(typingctx, args, tensor):
    """Address of the tensor's first element; 0 for an absent source."""

    def codegen(context, builder, signature, values):
        return load_word(builder, values[0], _word_of_tensor(builder, values[1], 0))

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def size(typingctx, args, tensor, axis):
    """Elements along `axis` (0 slowest … 3 fastest)."""

    def codegen(context, builder, signature, values):
        return load_word(builder, values[0], builder.add(_word_of_tensor(builder, values[1], 1), values[2]))

    return types.int64(types.int64, types.int64, types.int64), codegen


@intrinsic
def stride(typingctx, args, tensor, axis):
    """Bytes from one element to the next along `axis`; for a block-quantized tensor axis 3 steps by blocks."""

    def codegen(context, builder, signature, values):
        return load_word(builder, values[0], builder.add(_word_of_tensor(builder, values[1], 1 + RANK), values[2]))

    return types.int64(types.int64, types.int64, types.int64), codegen


@intrinsic
def scalar(typingctx, args, tensors, index):
    """The integer scalar `index` of a kernel with `tensors` tensors; past them: workspace, counter, extras."""

    def codegen(context, builder, signature, values):
        return load_word(builder, values[0], builder.add(_word_of_tensor(builder, values[1], 0), values[2]))

    return types.int64(types.int64, types.int64, types.int64), codegen


@intrinsic
def float_scalar(typingctx, args, tensors, index):
    """The float scalar `index` of a kernel that has `tensors` tensors, in float64."""

    def codegen(context, builder, signature, values):
        return load_word(builder, values[0], builder.add(_word_of_tensor(builder, values[1], 0), values[2]), _F64)

    return types.float64(types.int64, types.int64, types.int64), codegen


@helper
def rows(args, tensor):
    """Number of rows (vectors along the last axis)."""
    return size(args, tensor, 0) * size(args, tensor, 1) * size(args, tensor, 2)


@helper
def row_address(args, tensor, row):
    """Address of row number `row` of the tensor, counted in row-major order over its outer axes."""
    i2 = row % size(args, tensor, 2)
    rest = row // size(args, tensor, 2)
    i1 = rest % size(args, tensor, 1)
    i0 = rest // size(args, tensor, 1)
    return (
        address(args, tensor)
        + i0 * stride(args, tensor, 0)
        + i1 * stride(args, tensor, 1)
        + i2 * stride(args, tensor, 2)
    )


@helper
def broadcast_row_address(args, tensor, row, like):
    """Address of the row of `tensor` that stands beside row number `row` of `like`; size-1 axes repeat."""
    i2 = row % size(args, like, 2)
    rest = row // size(args, like, 2)
    i1 = rest % size(args, like, 1)
    i0 = rest // size(args, like, 1)
    result = address(args, tensor)
    if size(args, tensor, 0) > 1:
        result += i0 * stride(args, tensor, 0)
    if size(args, tensor, 1) > 1:
        result += i1 * stride(args, tensor, 1)
    if size(args, tensor, 2) > 1:
        result += i2 * stride(args, tensor, 2)
    return result


@helper
def share(count, ith, nth):
    """Thread `ith`'s even part [first, last) of `count` items."""
    return count * ith // nth, count * (ith + 1) // nth


@helper
def claim(counter, amount):
    """Take the next `amount` items of work from the call's shared counter; returns the first one's number.

    Threads claim until they get a number past the end, so that a thread which is held up leaves its work to the others:

        first = claim(counter, 8)
        while first < count:
            ...                                  # items first … min(first + 8, count) - 1
            first = claim(counter, 8)
    """
    return atomic_add(counter, amount)
