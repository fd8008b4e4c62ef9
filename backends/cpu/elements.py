"""Float elements whose dtype is known at run time only, and rows in pieces: what kernels of small ops are built from.

One compiled kernel serves every mix of f32, f16 and bf16: loads and stores branch on the dtype's number, always the
same way within a call, so that the processor predicts it. `kind` is that number (DType.gguf).

A piece is part of a row, short enough that each source's piece can be brought to dense float32 in a buffer on the stack
where its elements do not lie side by side; the vector loop then sees dense elements only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from graphrt import dtypes
from graphrt.backends.cpu.args import address, broadcast_row_address, size, stride
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.memory import (
    first_lanes,
    load_masked,
    load_vector,
    narrow,
    storage,
    widen,
)
from graphrt.backends.cpu.simd import I8, I32, I64, Vector, broadcast, call, literal, mangled
from graphrt.tensor import Tensor

PIECE = 1024
FLOAT32 = dtypes.f32.gguf
_FLOATS = {dtype.gguf: dtype.name for dtype in dtypes.FLOATS}


def kinds(tensors: Sequence[Tensor | None]) -> list[int]:
    """The number of each tensor's dtype; 0 for an absent one."""
    return [0 if tensor is None else tensor.dtype.gguf for tensor in tensors]


def present(node: Tensor) -> list[Tensor]:
    """The node's sources, without those that are absent."""
    return [source for source in node.srcs if source is not None]


def is_flat(node: Tensor, *sources: Tensor | None) -> bool:
    """Whether the node and its sources correspond in one dense run, so that rows need not be told apart."""
    return node.is_dense and all(
        source is None or (source.is_dense and source.shape == node.shape) for source in sources
    )


# ---- loads and stores ------------------------------------------------------------------------------------------------


def _branch(builder, kind, emit: Callable[[str], ir.Value | None]):
    """Emit `emit(dtype)` for each float dtype, entered by its number; returns the phi of the results, if any."""
    function = builder.function
    done = function.append_basic_block("kind.done")
    blocks = {number: function.append_basic_block(f"kind.{name}") for number, name in _FLOATS.items()}
    choice = builder.switch(kind, blocks[FLOAT32])
    results = []
    for number, name in _FLOATS.items():
        if number != FLOAT32:
            choice.add_case(I64(number), blocks[number])
        builder.position_at_end(blocks[number])
        value = emit(name)
        results.append((value, builder.block))
        builder.branch(done)
    builder.position_at_end(done)
    if results[0][0] is None:
        return None
    phi = builder.phi(results[0][0].type)
    for value, block in results:
        phi.add_incoming(value, block)
    return phi


@intrinsic(prefer_literal=True)
def load_float(typingctx, address, kind, lanes):
    """`lanes` consecutive elements as float32."""
    if literal(lanes) is None:
        return None

    def codegen(context, builder, signature, values):
        return _branch(
            builder,
            values[1],
            lambda dtype: widen(builder, load_vector(builder, values[0], storage(dtype), literal(lanes)), dtype),
        )

    return Vector("f32", literal(lanes))(types.int64, types.int64, lanes), codegen


@intrinsic(prefer_literal=True)
def load_float_first(typingctx, address, kind, lanes, count):
    """The first `count` of `lanes` consecutive elements as float32, then zeros."""
    if literal(lanes) is None:
        return None

    def codegen(context, builder, signature, values):
        mask = first_lanes(builder, values[3], literal(lanes))
        return _branch(
            builder,
            values[1],
            lambda dtype: widen(builder, load_masked(builder, values[0], storage(dtype), literal(lanes), mask), dtype),
        )

    return Vector("f32", literal(lanes))(types.int64, types.int64, lanes, types.int64), codegen


@intrinsic
def store_float(typingctx, address, kind, vector):
    """Store float32 lanes as consecutive elements."""

    def codegen(context, builder, signature, values):
        def store(dtype):
            raw = narrow(builder, values[2], dtype)
            builder.store(raw, builder.inttoptr(values[0], raw.type.as_pointer()), align=1)

        _branch(builder, values[1], store)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, vector), codegen


@intrinsic
def store_float_first(typingctx, address, kind, vector, count):
    """Store the first `count` float32 lanes as consecutive elements."""

    def codegen(context, builder, signature, values):
        mask = first_lanes(builder, values[3], vector.lanes)

        def store(dtype):
            raw = narrow(builder, values[2], dtype)
            pointer = builder.inttoptr(values[0], raw.type.as_pointer())
            call(builder, f"llvm.masked.store.{mangled(raw.type)}.p0", ir.VoidType(), raw, pointer, I32(1), mask)

        _branch(builder, values[1], store)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, vector, types.int64), codegen


@intrinsic
def load_number(typingctx, address, kind):
    """One element as float32."""

    def codegen(context, builder, signature, values):
        def load(dtype):
            pointer = builder.inttoptr(values[0], storage(dtype).as_pointer())
            return widen(builder, builder.load(pointer, align=1), dtype)

        return _branch(builder, values[1], load)

    return types.float32(types.int64, types.int64), codegen


@intrinsic
def store_number(typingctx, address, kind, value):
    """Store one float32 as an element."""

    def codegen(context, builder, signature, values):
        def store(dtype):
            raw = narrow(builder, values[2], dtype)
            builder.store(raw, builder.inttoptr(values[0], raw.type.as_pointer()), align=1)

        _branch(builder, values[1], store)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float32), codegen


@intrinsic
def keep_first(typingctx, vector, count, rest):
    """The first `count` lanes, then the number `rest`."""

    def codegen(context, builder, signature, values):
        mask = first_lanes(builder, values[1], vector.lanes)
        return builder.select(mask, values[0], broadcast(builder, values[2], vector.lanes))

    return vector(vector, types.int64, types.float32), codegen


@helper
def element_bytes(kind):
    """Bytes of one element."""
    return 4 if kind == FLOAT32 else 2


# ---- buffers and pieces ----------------------------------------------------------------------------------------------


@intrinsic(prefer_literal=True)
def stack_floats(typingctx, count):
    """Address of room for `count` float32 on the stack, aligned to 64 bytes; the same room at each pass of a loop."""
    if literal(count) is None:
        return None

    def codegen(context, builder, signature, values):
        # Not cgutils.alloca_once: it clears the room with one store, which LLVM takes a second to turn into many.
        with builder.goto_entry_block():
            room = builder.alloca(ir.ArrayType(I8, 4 * literal(count)))
            room.align = 64
            return builder.ptrtoint(room, I64)

    return types.int64(count), codegen


@helper
def gather(buffer, source, kind, step, count):
    """Bring `count` elements that lie `step` bytes apart to `buffer` as float32."""
    if step == 0:
        value = load_number(source, kind)
        for i in range(count):
            store_number(buffer + 4 * i, FLOAT32, value)
    else:
        for i in range(count):
            store_number(buffer + 4 * i, FLOAT32, load_number(source + i * step, kind))


@helper
def piece_of(args, tensor, kind, flat, row, start, count, buffer):
    """Elements start … start+count-1 of the tensor's row beside row `row` of the output, side by side.

    Args: flat: whether the tensor counts as one dense row.
    Returns: their address and kind: in place where they lie side by side already, else float32 in `buffer`, which has
        room for `count`. A last axis of length 1 is repeated.
    """
    if flat:
        return address(args, tensor) + start * element_bytes(kind), kind
    source = broadcast_row_address(args, tensor, row, 0)
    step = stride(args, tensor, 3) if size(args, tensor, 3) > 1 else 0
    if step == element_bytes(kind) or count == 1:
        return source + start * step, kind
    gather(buffer, source + start * step, kind, step, count)
    return buffer, FLOAT32


def loop_one(lanes, function):
    """A helper: target[i] = function(x[i], p, q) for `count` elements that lie side by side."""

    @helper
    def loop(target, out_kind, x, x_kind, count, p, q):
        out_step, x_step = element_bytes(out_kind), element_bytes(x_kind)
        whole = count - count % lanes
        for i in range(0, whole, lanes):
            store_float(target + i * out_step, out_kind, function(load_float(x + i * x_step, x_kind, lanes), p, q))
        if whole < count:
            v = load_float_first(x + whole * x_step, x_kind, lanes, count - whole)
            store_float_first(target + whole * out_step, out_kind, function(v, p, q), count - whole)

    return loop


def loop_two(lanes, function):
    """A helper: target[i] = function(a[i], b[i], p) for `count` elements that lie side by side."""

    @helper
    def loop(target, out_kind, a, a_kind, b, b_kind, count, p):
        out_step, a_step, b_step = element_bytes(out_kind), element_bytes(a_kind), element_bytes(b_kind)
        whole = count - count % lanes
        for i in range(0, whole, lanes):
            u, v = load_float(a + i * a_step, a_kind, lanes), load_float(b + i * b_step, b_kind, lanes)
            store_float(target + i * out_step, out_kind, function(u, v, p))
        if whole < count:
            u = load_float_first(a + whole * a_step, a_kind, lanes, count - whole)
            v = load_float_first(b + whole * b_step, b_kind, lanes, count - whole)
            store_float_first(target + whole * out_step, out_kind, function(u, v, p), count - whole)

    return loop
