"""Attention's results: for each part of a task the rows' highest scores, sums and totals; from them, the output."""

from __future__ import annotations

import numpy as np

from graphrt.backends.cpu import attention_layout as at
from graphrt.backends.cpu.args import address, share, size, stride
from graphrt.backends.cpu.attention_cells import HIDDEN, ZERO
from graphrt.backends.cpu.attention_layout import groups_of, parts_of, rows_of_head, setting
from graphrt.backends.cpu.elements import load_number
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.jit import Kernel
from graphrt.backends.cpu.memory import load_f32, load_f32_first, load_one, store_f32, store_f32_first
from graphrt.backends.cpu.simd import splat


@helper
def blocks_of_head(args):
    """Blocks of rows of one kv head."""
    block = setting(args, at.BLOCK)
    return (rows_of_head(args) + block - 1) // block


@helper
def shared_result(args, block, part, parts, nth):
    """Address of the result of one part of a block, counted over all kv heads, in the memory that threads share."""
    results = setting(args, at.WORKSPACE) + nth * setting(args, at.SCRATCH_BYTES)
    return results + (block * parts + part) * setting(args, at.RESULT_BYTES)


def clearer(lanes):
    """A helper: the result before the first chunk."""

    @helper
    def clear(args, result):
        for i in range(0, setting(args, at.SUMS), 4 * lanes):
            store_f32(result + i, "f32", splat(HIDDEN, lanes))
        for i in range(setting(args, at.SUMS), setting(args, at.RESULT_BYTES), 4 * lanes):
            store_f32(result + i, "f32", splat(ZERO, lanes))

    return clear


@helper
def weight_of(result, r, highest):
    """What a part's sum and totals count, given the highest score of all parts."""
    return np.exp(np.float64(load_one(result + 4 * r, "f32")) - highest)


@helper
def sink_of(args, head):
    """The head's sink, or -inf."""
    if address(args, at.SINKS):
        return load_number(address(args, at.SINKS) + head * stride(args, at.SINKS, 3), setting(args, at.SINK_KIND))
    return HIDDEN


def finisher(lanes, with_sinks=True):
    """A helper: row `row` of a kv head's output from the parts of its block, in which it is number r."""

    @helper
    def finish_row(args, result, parts, kv_head, row, r):
        group, width = setting(args, at.GROUP), size(args, at.Y, 3)
        token, head = row // group, kv_head * group + row % group
        step, sums, totals = setting(args, at.RESULT_BYTES), setting(args, at.SUMS), setting(args, at.TOTALS)
        sink = sink_of(args, head) if with_sinks else HIDDEN
        highest = sink
        for part in range(parts):
            highest = max(highest, load_one(result + part * step + 4 * r, "f32"))
        if highest == HIDDEN:
            highest = ZERO
        total = np.exp(np.float64(sink) - highest)
        for part in range(parts):
            at_part = result + part * step
            total += weight_of(at_part, r, highest) * load_one(at_part + sums + 4 * r, "f32")
        y = address(args, at.Y) + token * stride(args, at.Y, 1) + head * stride(args, at.Y, 2)
        for i in range(0, width, lanes):
            store_f32_first(y + 4 * i, "f32", splat(ZERO, lanes), width - i)
        for part in range(parts):
            factor = np.float32(weight_of(result + part * step, r, highest) / total) if total > 0.0 else ZERO
            mixed = result + part * step + totals + r * setting(args, at.VALUE_PITCH)
            for i in range(0, width, lanes):
                so_far = load_f32_first(y + 4 * i, "f32", lanes, width - i)
                v = so_far + load_f32(mixed + 4 * i, "f32", lanes) * factor
                store_f32_first(y + 4 * i, "f32", v, width - i)

    return finish_row


def merge(lanes: int, few: bool) -> Kernel:
    """Native: the output of tasks whose results are shared: those done in parts, and all tasks of few rows."""
    finish_row = finisher(lanes)

    def run(args, ith, nth):
        total, block, blocks = rows_of_head(args), setting(args, at.BLOCK), blocks_of_head(args)
        kv_heads, cells = size(args, at.K, 2), size(args, at.K, 1)
        parts = parts_of(groups_of(kv_heads, cells, nth) if few else kv_heads * blocks, cells, nth)
        if parts == 1 and not few:
            return
        first, last = share(kv_heads * total, ith, nth)
        for i in range(first, last):
            kv_head, row = i // total, i % total
            result = shared_result(args, kv_head * blocks + row // block, 0, parts, nth)
            finish_row(args, result, parts, kv_head, row, row % block)

    return run
