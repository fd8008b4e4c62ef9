"""Kernels of soft_max and sum_rows."""

from __future__ import annotations

import numpy as np

from graphrt import ops
from graphrt.backends.cpu import host
from graphrt.backends.cpu.args import address, float_scalar, row_address, rows, scalar, share, size, stride
from graphrt.backends.cpu.elements import (
    FLOAT32,
    PIECE,
    element_bytes,
    keep_first,
    kinds,
    load_float_first,
    load_number,
    loop_one,
    piece_of,
    present,
    stack_floats,
    store_number,
)
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.jit import native
from graphrt.backends.cpu.memory import load_f32, store_f32
from graphrt.backends.cpu.registry import Call, lowering
from graphrt.backends.cpu.simd import fma, maximum, reduce_add, reduce_max, splat
from graphrt.backends.cpu.vector_math import exp, like
from graphrt.tensor import Tensor

HIDDEN = np.float32(-np.inf)


def logits_of(lanes):
    """A helper: the logits of a piece of a row, scale · x + mask, at `buffer`, filled up with -inf to whole vectors."""

    @helper
    def logits(args, row, start, count, scale, x_kind, mask_kind, buffer, x_buffer, mask_buffer):
        x, kind = piece_of(args, 1, x_kind, False, row, start, count, x_buffer)
        step, masked = element_bytes(kind), address(args, 2) != 0
        mask, mask_now = x, kind
        if masked:
            mask, mask_now = piece_of(args, 2, mask_kind, False, row, start, count, mask_buffer)
        mask_step = element_bytes(mask_now)
        for i in range(0, count, lanes):
            bias = splat(np.float32(0), lanes)
            if masked:
                bias = load_float_first(mask + i * mask_step, mask_now, lanes, count - i)
            z = fma(load_float_first(x + i * step, kind, lanes, count - i), splat(scale, lanes), bias)
            store_f32(buffer + 4 * i, "f32", keep_first(z, count - i, HIDDEN))

    return logits


@helper
def share_of_total(z, highest, factor):
    """One logit's part of the distribution."""
    return exp(z - like(z, highest)) * like(z, factor)


def highest_of(lanes):
    """A helper: the highest of `count` logits at `buffer`, filled up with -inf; NaN counts for nothing."""

    @helper
    def highest(buffer, count):
        top = splat(HIDDEN, lanes)
        for i in range(0, count, lanes):
            top = maximum(top, load_f32(buffer + 4 * i, "f32", lanes))
        return reduce_max(top)

    return highest


def powers_of(lanes):
    """A helper: the sum of e to the (logit - highest) of `count` logits at `buffer`, filled up with -inf."""

    @helper
    def powers(buffer, count, highest):
        total = splat(np.float32(0), lanes)
        for i in range(0, count, lanes):
            total = total + exp(load_f32(buffer + 4 * i, "f32", lanes) - highest)
        return reduce_add(total)

    return powers


def sum_of(lanes):
    """A helper: the sum of `count` elements that lie side by side."""

    @helper
    def total(x, kind, count):
        step = element_bytes(kind)
        partial = splat(np.float32(0), lanes)
        for i in range(0, count, lanes):
            partial = partial + load_float_first(x + i * step, kind, lanes, count - i)
        return reduce_add(partial)

    return total


def soft_max(lanes):
    """Scalars: the dtypes' numbers of out, x, mask and sinks; scale."""
    logits, distribute = logits_of(lanes), loop_one(lanes, share_of_total)
    highest_logit, powers = highest_of(lanes), powers_of(lanes)

    def run(args, ith, nth):
        out_kind, x_kind, mask_kind, sink_kind = (
            scalar(args, 4, 0),
            scalar(args, 4, 1),
            scalar(args, 4, 2),
            scalar(args, 4, 3),
        )
        scale = np.float32(float_scalar(args, 4, 4))
        buffer, x_buffer, mask_buffer = stack_floats(PIECE), stack_floats(PIECE), stack_floats(PIECE)
        n = size(args, 0, 3)
        first, last = share(rows(args, 0), ith, nth)
        for row in range(first, last):
            sink = HIDDEN
            if address(args, 3):
                head = row // size(args, 0, 2) % size(args, 0, 1)
                sink = load_number(address(args, 3) + head * stride(args, 3, 3), sink_kind)
            highest = sink
            # A row of one piece stays in the buffer; longer ones are read three times.
            for start in range(0, n, PIECE):
                count = min(PIECE, n - start)
                logits(args, row, start, count, scale, x_kind, mask_kind, buffer, x_buffer, mask_buffer)
                highest = max(highest, highest_logit(buffer, count))
            if highest == HIDDEN:
                highest = np.float32(0)
            total = 0.0
            for start in range(0, n, PIECE):
                count = min(PIECE, n - start)
                if n > PIECE:
                    logits(args, row, start, count, scale, x_kind, mask_kind, buffer, x_buffer, mask_buffer)
                total += powers(buffer, count, highest)
            total += np.exp(np.float64(sink) - highest)
            factor = np.float32(1.0 / total) if total != 0.0 else np.float32(0)
            for start in range(0, n, PIECE):
                count = min(PIECE, n - start)
                if n > PIECE:
                    logits(args, row, start, count, scale, x_kind, mask_kind, buffer, x_buffer, mask_buffer)
                target = row_address(args, 0, row) + start * element_bytes(out_kind)
                distribute(target, out_kind, buffer, FLOAT32, count, highest, factor)

    return run


@lowering(ops.soft_max)
def _(node: Tensor) -> list[Call]:
    tensors = [node, *node.srcs]
    scalars = [*kinds(tensors), float(node.params["scale"])]
    return [Call(native(soft_max, host.level().lanes), tensors, scalars, work=6 * node.size)]


def sum_rows(lanes):
    """Scalars: the dtypes' numbers of out and x."""
    add_up = sum_of(lanes)

    def run(args, ith, nth):
        out_kind, x_kind = scalar(args, 2, 0), scalar(args, 2, 1)
        buffer = stack_floats(PIECE)
        n = size(args, 1, 3)
        first, last = share(rows(args, 0), ith, nth)
        for row in range(first, last):
            total = 0.0
            for start in range(0, n, PIECE):
                count = min(PIECE, n - start)
                x, kind = piece_of(args, 1, x_kind, False, row, start, count, buffer)
                total += add_up(x, kind, count)
            store_number(row_address(args, 0, row), out_kind, np.float32(total))

    return run


@lowering(ops.sum_rows)
def _(node: Tensor) -> list[Call]:
    tensors = [node, *node.srcs]
    return [Call(native(sum_rows, host.level().lanes), tensors, kinds(tensors), work=present(node)[0].size)]
