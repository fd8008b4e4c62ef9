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
from graphrt.backends.cpu.attention_cells import ALL, NONE, cells_marker, rows_see, score_hider
from graphrt.backends.cpu.attention_chunk import keys_loader, values_loader
from graphrt.backends.cpu.attention_few import attend_few
from graphrt.backends.cpu.attention_layout import CELLS, parts_of, rows_of_head, setting
from graphrt.backends.cpu.attention_results import blocks_of_head, clearer, finisher, merge, shared_result
from graphrt.backends.cpu.attention_scratch import Scratch
from graphrt.backends.cpu.attention_steps import (
    panel_scorer,
    rows_loader,
    score_capper,
    softmax_updater,
    value_mixer,
)
from graphrt.backends.cpu.attention_turns import aim_of, begin_turning, block_aimer, set_aim
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.jit import Kernel, native
from graphrt.backends.cpu.registry import Call, lowering
from graphrt.backends.cpu.tile import Tile, tile
from graphrt.tensor import Tensor


def chunk_attender(lanes: int, vectors: int, shape: Tile, mode: str, whole: bool, integers: bool):
    """A helper: let the rows of a block attend to one chunk of cells."""
    mark, hide, cap, width = cells_marker(lanes), score_hider(lanes, vectors), score_capper(lanes), lanes * vectors
    aim, update = block_aimer(lanes, vectors, mode, whole, integers), softmax_updater(lanes, vectors, integers)
    load_keys, load_values = keys_loader(lanes, mode, whole, integers), values_loader(lanes, shape, integers)
    score, mix = panel_scorer(lanes, vectors, shape.columns, integers), value_mixer(lanes, vectors, shape, integers)

    @helper
    def attend_chunk(args, scratch, result, kv_head, first_row, rows, first_cell):
        cells = min(CELLS, size(args, at.K, 1) - first_cell)
        of_block = mark(args, scratch, first_row, rows, first_cell, cells)
        if of_block == NONE:
            return
        turning, aimed = False, 0
        if mode:
            turning = aim(args, scratch, kv_head, first_row, rows, first_cell, cells)
            aimed = aim_of(args, scratch)
        load_keys(args, scratch, kv_head, first_cell, cells, turning, aimed, of_block == ALL)
        value_factor, norm = load_values(args, scratch, kv_head, first_cell, cells)
        for row in range(0, rows, width):
            count, answer = min(width, rows - row), of_block
            if answer != ALL and rows > width:
                answer = rows_see(args, first_row + row, count, first_cell, cells)
            if answer == NONE:
                continue
            score(args, scratch, kv_head, row, first_cell, cells)
            if setting(args, at.SOFTCAP) != 0:
                cap(args, scratch + setting(args, at.SCORES), cells * width)
            if answer != ALL:
                hide(args, scratch, row, first_cell, cells)
            update(args, scratch, result, row, cells, value_factor, norm)
            mix(args, scratch, result, row, count, cells)

    return attend_chunk


def attend(lanes: int, vectors: int, shape: tuple[int, int], mode: str, whole: bool, integers: bool) -> Kernel:
    """Native: every block of rows, part by part; those of one part to the end.

    Args: shape: vectors and columns of a tile of values;  mode, whole: see Layout.turning;  integers: whether products
          are those of int16, else of float32.
    """
    attend_chunk = chunk_attender(lanes, vectors, Tile(lanes, *shape), mode, whole, integers)
    load_rows, clear, finish_row = rows_loader(lanes, vectors, mode, whole, integers), clearer(lanes), finisher(lanes)

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


@lowering(ops.attention, workspace=lambda node, threads: Scratch(node).workspace(threads))
def _(node: Tensor) -> list[Call]:
    layout, shape, lanes = Scratch(node), tile(), host.level().lanes
    tensors, scalars = [node, *node.srcs], layout.scalars
    if layout.few:
        attending = native(attend_few, lanes, layout.stripe, *layout.direct, *layout.turning)
    else:
        ways = (*layout.turning, layout.integers)
        attending = native(attend, lanes, layout.vectors, (shape.vectors, shape.columns), *ways)
    merging = native(merge, lanes, layout.few)
    return [Call(attending, tensors, scalars, layout.extras), Call(merging, tensors, scalars)]
