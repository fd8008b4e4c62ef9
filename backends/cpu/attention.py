"""Kernel of attention: an online softmax over chunks of cells, so that no [T, N] matrix is ever in memory.

For each chunk a task expands keys and values to float32 tiles, once for all its rows, and takes the steps of
attention_steps.py. A second native function merges the parts of tasks that were divided among threads.
"""

from __future__ import annotations

import numpy as np

from graphrt import ops
from graphrt.backends.cpu import attention_layout as at
from graphrt.backends.cpu import host
from graphrt.backends.cpu.args import address, claim, share, size, stride
from graphrt.backends.cpu.attention_cells import ALL, NONE, look, tile_filler
from graphrt.backends.cpu.attention_layout import CELLS, Layout, parts_of, setting
from graphrt.backends.cpu.attention_steps import (
    HIDDEN,
    ZERO,
    hide,
    panel_scorer,
    row_scorer,
    rows_loader,
    score_capper,
    softmax_updater,
    value_mixer,
)
from graphrt.backends.cpu.elements import load_number
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.jit import Kernel, native
from graphrt.backends.cpu.memory import load_f32, load_f32_first, load_one, store_f32, store_f32_first
from graphrt.backends.cpu.registry import Call, lowering
from graphrt.backends.cpu.simd import splat
from graphrt.backends.cpu.tile import Tile, tile
from graphrt.tensor import Tensor


@helper
def rows_of_head(args):
    """Rows of one kv head."""
    return size(args, at.Q, 1) * setting(args, at.GROUP)


@helper
def task_count(args):
    """Tasks: blocks of rows of every kv head."""
    block = setting(args, at.BLOCK)
    return size(args, at.K, 2) * ((rows_of_head(args) + block - 1) // block)


@helper
def result_of(args, task, part, parts, ith, nth):
    """Address of the result of one part of a task; a task of one part keeps it in the thread's scratch memory."""
    workspace, scratch_bytes = setting(args, at.WORKSPACE), setting(args, at.SCRATCH_BYTES)
    if parts == 1:
        return workspace + ith * scratch_bytes + setting(args, at.RESULT)
    return workspace + nth * scratch_bytes + (task * parts + part) * setting(args, at.RESULT_BYTES)


def clearer(lanes):
    """A helper: the result before the first chunk."""

    @helper
    def clear(args, result):
        for i in range(0, setting(args, at.SUMS), 4 * lanes):
            store_f32(result + i, "f32", splat(HIDDEN, lanes))
        for i in range(setting(args, at.SUMS), setting(args, at.RESULT_BYTES), 4 * lanes):
            store_f32(result + i, "f32", splat(ZERO, lanes))

    return clear


def chunk_attender(lanes: int, vectors: int, narrow: bool, shape: Tile):
    """A helper: let the rows of a block attend to one chunk of cells."""
    fill, cap = tile_filler(lanes), score_capper(lanes, vectors)
    score = row_scorer(lanes) if narrow else panel_scorer(lanes, vectors, shape.columns)
    update, mix, width = softmax_updater(lanes, vectors), value_mixer(lanes, vectors, shape), lanes * vectors

    @helper
    def attend_chunk(args, scratch, result, kv_head, first_row, rows, first_cell):
        group, seen = setting(args, at.GROUP), scratch + setting(args, at.SEEN)
        cells = min(CELLS, size(args, at.K, 1) - first_cell)
        first_token, last_token = first_row // group, (first_row + rows - 1) // group
        answer = look(args, first_token, last_token - first_token + 1, first_cell, cells, seen)
        if answer == NONE:
            return
        fill(args, at.K, kv_head, first_cell, cells, scratch)
        score(args, scratch, rows, cells)
        if setting(args, at.SOFTCAP) != 0:
            cap(args, scratch, rows, cells)
        if answer != ALL:
            hide(args, scratch, width, first_row, rows, cells)
        update(args, scratch, result, rows, cells)
        if not setting(args, at.SHARED):
            fill(args, at.V, kv_head, first_cell, cells, scratch)
        mix(args, scratch, result, rows, cells)

    return attend_chunk


def finisher(lanes):
    """A helper: one row of the output from the parts of its task."""

    @helper
    def finish_row(args, result, parts, kv_head, row, r):
        group, width = setting(args, at.GROUP), size(args, at.V, 3)
        token, head = row // group, kv_head * group + row % group
        target = address(args, at.Y) + token * stride(args, at.Y, 1) + head * stride(args, at.Y, 2)
        step, sums, totals = setting(args, at.RESULT_BYTES), setting(args, at.SUMS), setting(args, at.TOTALS)
        sink = HIDDEN
        if address(args, at.SINKS):
            kind = setting(args, at.SINK_KIND)
            sink = load_number(address(args, at.SINKS) + head * stride(args, at.SINKS, 3), kind)
        highest = sink
        for part in range(parts):
            highest = max(highest, load_one(result + part * step + 4 * r, "f32"))
        if highest == HIDDEN:
            highest = ZERO
        total = np.exp(np.float64(sink) - highest)
        for part in range(parts):
            weight = np.exp(np.float64(load_one(result + part * step + 4 * r, "f32")) - highest)
            total += weight * load_one(result + part * step + sums + 4 * r, "f32")
        for i in range(0, width, lanes):
            store_f32_first(target + 4 * i, "f32", splat(ZERO, lanes), width - i)
        for part in range(parts):
            weight = np.exp(np.float64(load_one(result + part * step + 4 * r, "f32")) - highest)
            factor = np.float32(weight / total) if total > 0.0 else ZERO
            mixed = result + part * step + totals + r * setting(args, at.VALUE_PITCH)
            for i in range(0, width, lanes):
                y = load_f32_first(target + 4 * i, "f32", lanes, width - i)
                y = y + load_f32(mixed + 4 * i, "f32", lanes) * factor
                store_f32_first(target + 4 * i, "f32", y, width - i)

    return finish_row


def attend(lanes: int, vectors: int, narrow: bool, value_vectors: int, columns: int) -> Kernel:
    """Native: every task, part by part; tasks of one part to the end."""
    shape = Tile(lanes, value_vectors, columns)
    load_rows, attend_chunk = rows_loader(lanes, vectors, narrow), chunk_attender(lanes, vectors, narrow, shape)
    clear, finish_row = clearer(lanes), finisher(lanes)

    def run(args, ith, nth):
        total, block = rows_of_head(args), setting(args, at.BLOCK)
        blocks = (total + block - 1) // block
        tasks, cells = task_count(args), size(args, at.K, 1)
        parts = parts_of(tasks, cells, nth)
        scratch = setting(args, at.WORKSPACE) + ith * setting(args, at.SCRATCH_BYTES)
        item = claim(setting(args, at.COUNTER), 1)
        while item < tasks * parts:
            task, part = item // parts, item % parts
            kv_head, first_row = task // blocks, task % blocks * block
            rows = min(block, total - first_row)
            result = result_of(args, task, part, parts, ith, nth)
            clear(args, result)
            load_rows(args, scratch, kv_head, first_row, rows)
            first, last = share((cells + CELLS - 1) // CELLS, part, parts)
            for chunk in range(first, last):
                attend_chunk(args, scratch, result, kv_head, first_row, rows, chunk * CELLS)
            if parts == 1:
                for r in range(rows):
                    finish_row(args, result, 1, kv_head, first_row + r, r)
            item = claim(setting(args, at.COUNTER), 1)

    return run


def merge(lanes: int) -> Kernel:
    """Native: the output of tasks that were done in parts."""
    finish_row = finisher(lanes)

    def run(args, ith, nth):
        total, block, tasks = rows_of_head(args), setting(args, at.BLOCK), task_count(args)
        parts = parts_of(tasks, size(args, at.K, 1), nth)
        if parts == 1:
            return
        blocks = (total + block - 1) // block
        first, last = share(size(args, at.K, 2) * total, ith, nth)
        for i in range(first, last):
            kv_head, row = i // total, i % total
            result = result_of(args, kv_head * blocks + row // block, 0, parts, ith, nth)
            finish_row(args, result, parts, kv_head, row, row % block)

    return run


@lowering(ops.attention, workspace=lambda node, threads: Layout(node).workspace(threads))
def _(node: Tensor) -> list[Call]:
    layout, shape, lanes = Layout(node), tile(), host.level().lanes
    tensors, scalars = [node, *node.srcs], layout.scalars
    attending = native(attend, lanes, layout.vectors, layout.narrow, shape.vectors, shape.columns)
    return [Call(attending, tensors, scalars), Call(native(merge, lanes), tensors, scalars)]
