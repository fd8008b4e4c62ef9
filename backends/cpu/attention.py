"""Kernel of attention: an online softmax over chunks of cells, so that no [T, N] matrix is ever in memory.

Here is the way for many rows: for each chunk a task expands keys and values to float32 tiles, once for all its rows,
and takes the steps of attention_steps.py. attention_few.py has the way for few rows. Where results are shared, because
a task was divided among threads, a second native function makes the output of them.
"""

from __future__ import annotations

from graphrt import ops
from graphrt.backends.cpu import attention_layout as at
from graphrt.backends.cpu import host
from graphrt.backends.cpu.args import claim, share, size
from graphrt.backends.cpu.attention_cells import ALL, NONE, look, tile_filler
from graphrt.backends.cpu.attention_few import attend_few
from graphrt.backends.cpu.attention_layout import CELLS, Layout, parts_of, rows_of_head, setting
from graphrt.backends.cpu.attention_results import blocks_of_head, clearer, finisher, merge, shared_result
from graphrt.backends.cpu.attention_steps import (
    hide,
    panel_scorer,
    rows_loader,
    score_capper,
    softmax_updater,
    value_mixer,
)
from graphrt.backends.cpu.attention_turns import aim_of, begin_turning, block_aimer, set_aim, tile_turner
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.jit import Kernel, native
from graphrt.backends.cpu.registry import Call, lowering
from graphrt.backends.cpu.tile import Tile, tile
from graphrt.tensor import Tensor


def chunk_attender(lanes: int, vectors: int, shape: Tile, mode: str, whole: bool):
    """A helper: let the rows of a block attend to one chunk of cells."""
    fill, cap, width = tile_filler(lanes), score_capper(lanes), lanes * vectors
    aim, turn = block_aimer(lanes, vectors, mode, whole), tile_turner(lanes, mode, whole)
    score, update = panel_scorer(lanes, vectors, shape.columns), softmax_updater(lanes, vectors)
    mix = value_mixer(lanes, vectors, shape)

    @helper
    def attend_chunk(args, scratch, result, kv_head, first_row, rows, first_cell):
        group, seen = setting(args, at.GROUP), scratch + setting(args, at.SEEN)
        cells = min(CELLS, size(args, at.K, 1) - first_cell)
        first_token, last_token = first_row // group, (first_row + rows - 1) // group
        answer = look(args, first_token, last_token - first_token + 1, first_cell, cells, seen)
        if answer == NONE:
            return
        fill(args, at.K, kv_head, first_cell, cells, scratch)
        if mode and aim(args, scratch, kv_head, first_row, rows, first_cell, cells):
            turn(args, scratch, first_cell, cells, aim_of(args, scratch))
        score(args, scratch, rows, cells)
        if setting(args, at.SOFTCAP) != 0:
            for panel in range((rows + width - 1) // width):
                scores = scratch + setting(args, at.SCORES) + panel * setting(args, at.PANEL_BYTES)
                cap(args, scores, cells * width)
        if answer != ALL:
            hide(args, scratch, width, first_row, rows, cells)
        update(args, scratch, result, rows, cells)
        if not setting(args, at.SHARED):
            fill(args, at.V, kv_head, first_cell, cells, scratch)
        mix(args, scratch, result, rows, cells)

    return attend_chunk


def attend(lanes: int, vectors: int, value_vectors: int, columns: int, mode: str, whole: bool) -> Kernel:
    """Native: every block of rows, part by part; those of one part to the end. See Layout.turning."""
    attend_chunk = chunk_attender(lanes, vectors, Tile(lanes, value_vectors, columns), mode, whole)
    load_rows, clear, finish_row = rows_loader(lanes, vectors, mode, whole), clearer(lanes), finisher(lanes)

    def run(args, ith, nth):
        total, block, blocks = rows_of_head(args), setting(args, at.BLOCK), blocks_of_head(args)
        tasks, cells = size(args, at.K, 2) * blocks, size(args, at.K, 1)
        parts = parts_of(tasks, cells, nth)
        scratch = setting(args, at.WORKSPACE) + ith * setting(args, at.SCRATCH_BYTES)
        if mode:
            begin_turning(args, scratch)
        item = claim(setting(args, at.COUNTER), 1)
        while item < tasks * parts:
            task, part = item // parts, item % parts
            kv_head, first_row = task // blocks, task % blocks * block
            rows = min(block, total - first_row)
            result = scratch + setting(args, at.RESULT)
            if parts > 1:
                result = shared_result(args, task, part, parts, nth)
            clear(args, result)
            load_rows(args, scratch, kv_head, first_row, rows, 0)
            if mode:
                set_aim(args, scratch, 0)
            first, last = share((cells + CELLS - 1) // CELLS, part, parts)
            for chunk in range(first, last):
                attend_chunk(args, scratch, result, kv_head, first_row, rows, chunk * CELLS)
            if parts == 1:
                for r in range(rows):
                    finish_row(args, result, 1, kv_head, first_row + r, r)
            item = claim(setting(args, at.COUNTER), 1)

    return run


@lowering(ops.attention, workspace=lambda node, threads: Layout(node).workspace(threads))
def _(node: Tensor) -> list[Call]:
    layout, shape, lanes = Layout(node), tile(), host.level().lanes
    tensors, scalars = [node, *node.srcs], layout.scalars
    if layout.few:
        attending = native(attend_few, lanes, layout.stripe, *layout.direct, *layout.turning)
    else:
        attending = native(attend, lanes, layout.vectors, shape.vectors, shape.columns, *layout.turning)
    merging = native(merge, lanes, layout.few)
    return [Call(attending, tensors, scalars, layout.extras), Call(merging, tensors, scalars)]
