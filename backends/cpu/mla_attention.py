"""Kernel of attention by expansion: for each head, chunk by chunk, latents become keys and values in a thread's tiles.

A chunk is expanded once for all queries, and then attended to by a panel of queries at a time, as in attention.py, so
that neither scores nor expanded keys and values are ever whole in memory.
"""

from __future__ import annotations

from graphrt import ops
from graphrt.backends.cpu import attention_layout as at
from graphrt.backends.cpu import host
from graphrt.backends.cpu.args import claim, share, size
from graphrt.backends.cpu.attention_cells import ALL, NONE, cells_marker, rows_see, score_hider
from graphrt.backends.cpu.attention_layout import setting
from graphrt.backends.cpu.attention_results import clearer, finisher
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.jit import Kernel, native
from graphrt.backends.cpu.mla_cells import begin_turning, latents_expander, latents_loader
from graphrt.backends.cpu.mla_codes import columns_numberer
from graphrt.backends.cpu.mla_layout import CELLS, KEYS, LATENT, VALUES, Layout, chunks, parts_of_head
from graphrt.backends.cpu.mla_panels import queries_loader
from graphrt.backends.cpu.mla_steps import panel_scorer, softmax_updater, value_mixer
from graphrt.backends.cpu.mla_weights import weights_loader
from graphrt.backends.cpu.registry import Call, lowering
from graphrt.backends.cpu.tile import tile
from graphrt.tensor import Tensor


def chunk_attender(lanes, vectors, columns, pairs, codes, mode):
    """A helper: let all queries of a head attend to one chunk of cells."""
    mark, load, hide = cells_marker(lanes), latents_loader(lanes, pairs, codes, mode), score_hider(lanes, vectors)
    expand = latents_expander(lanes, vectors, columns, pairs, codes)
    score, update = panel_scorer(lanes, vectors, columns, pairs), softmax_updater(lanes, vectors, pairs)
    mix, width = value_mixer(lanes, vectors, columns, pairs), lanes * vectors

    @helper
    def attend_chunk(args, scratch, result, first_cell):
        cells, tokens = min(CELLS, size(args, LATENT, 1) - first_cell), size(args, at.Q, 1)
        of_head = mark(args, scratch, 0, tokens, first_cell, cells)
        if of_head == NONE:
            return
        load(args, scratch, first_cell, cells)
        expand(args, scratch, cells)
        for token in range(0, tokens, width):
            count, answer = min(width, tokens - token), of_head
            if answer != ALL and tokens > width:
                answer = rows_see(args, token, count, first_cell, cells)
            if answer != NONE:
                score(args, scratch, token, cells)
                if answer != ALL:
                    hide(args, scratch, token, first_cell, cells)
                update(args, scratch, result, token, cells)
                mix(args, scratch, result, token, count, cells)

    return attend_chunk


def attend_expanded(
    lanes: int, vectors: int, columns: int, pairs: bool, codes: bool, transposed: bool, mode: str
) -> Kernel:
    """Native: every head, part by part; those of one part to the end.

    Args: pairs: whether words are pairs of bfloat16, else float32; codes: whether latents are expanded in int8;
          transposed: whether the keys' weights are; mode: of the latents' rotation, "" for none.
    """
    attend_chunk = chunk_attender(lanes, vectors, columns, pairs, codes, mode)
    load_weights = weights_loader(lanes, vectors, pairs, codes, transposed)
    load_queries = queries_loader(lanes, vectors, pairs)
    clear, finish_row, number_columns = clearer(lanes), finisher(lanes, False), columns_numberer()

    def run(args, ith, nth):
        heads, tokens, parts = size(args, at.Q, 2), size(args, at.Q, 1), parts_of_head(args, nth)
        scratch = setting(args, at.WORKSPACE) + ith * setting(args, at.SCRATCH_BYTES)
        if mode:
            begin_turning(args, scratch)
        if codes:
            number_columns(args, scratch)
        item = claim(setting(args, at.COUNTER), 1)
        while item < heads * parts:
            head, part = item // parts, item % parts
            result = scratch + setting(args, at.RESULT)
            if parts > 1:
                result = shared_result(args, item, nth)
            clear(args, result)
            load_weights(args, scratch, head)
            load_queries(args, scratch, head)
            first, last = share(chunks(args), part, parts)
            for chunk in range(first, last):
                attend_chunk(args, scratch, result, chunk * CELLS)
            if parts == 1:
                for token in range(tokens):
                    finish_row(args, result, 1, head, token, token)
            item = claim(setting(args, at.COUNTER), 1)

    return run


@helper
def shared_result(args, item, nth):
    """Address of the result of one part of a head, in the memory that threads share."""
    return setting(args, at.WORKSPACE) + nth * setting(args, at.SCRATCH_BYTES) + item * setting(args, at.RESULT_BYTES)


def merge_heads(lanes: int) -> Kernel:
    """Native: the output of heads that were done in parts."""
    finish_row = finisher(lanes, False)

    def run(args, ith, nth):
        parts, tokens = parts_of_head(args, nth), size(args, at.Q, 1)
        if parts == 1:
            return
        first, last = share(size(args, at.Q, 2) * tokens, ith, nth)
        for i in range(first, last):
            head, token = i // tokens, i % tokens
            finish_row(args, shared_result(args, head * parts, nth), parts, head, token, token)

    return run


@lowering(ops.mla_attention, workspace=lambda node, threads: Layout(node).workspace(threads))
def _(node: Tensor) -> list[Call]:
    layout, shape, lanes = Layout(node), tile(), host.level().lanes
    positions = (at.Q_POS, at.Q_SEQ, at.CELL_POS, at.CELL_SEQ, at.CELL_ROTATION, at.FREQ_FACTORS)
    given = dict(zip((at.Y, at.Q, LATENT, KEYS, VALUES, *positions), [node, *node.srcs], strict=True))
    tensors = [given.get(place) for place in range(at.TENSORS)]
    ways = (layout.pairs, layout.codes, node.params["keys_transposed"], layout.mode)
    attending = native(attend_expanded, lanes, shape.vectors, shape.columns, *ways)
    return [Call(each, tensors, layout.scalars, layout.extras) for each in (attending, native(merge_heads, lanes))]
