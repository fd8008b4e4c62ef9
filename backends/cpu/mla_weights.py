"""A head's weights of attention by expansion as panels, which a task prepares once: of words, or of codes (int8)."""

from __future__ import annotations

from graphrt.backends.cpu import attention_layout as at
from graphrt.backends.cpu.args import address, size, stride
from graphrt.backends.cpu.attention_layout import setting
from graphrt.backends.cpu.bf16 import interleave
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.int8_form import ELEMENTS, Panel
from graphrt.backends.cpu.memory import load_f32, store_f32
from graphrt.backends.cpu.mla_codes import block_packer
from graphrt.backends.cpu.mla_layout import (
    EXPANDED,
    KEY_PANELS,
    KEYS,
    KEYS_EXPAND,
    LATENT_DEPTH,
    LATENT_WORDS,
    LINE_PITCH,
    VALUE_PANELS,
    VALUES,
    WEIGHT_BYTES,
    WEIGHTS,
)
from graphrt.backends.cpu.mla_panels import line_clearer, lines_transposer, row_expander
from graphrt.backends.cpu.tile import transpose_block


def lines_packer(lanes, vectors, pairs, codes):
    """A helper: bring as many rows of float32, at LINES, as a vector has lanes to a panel from `panel` on."""
    transpose, pack_block = lines_transposer(lanes, vectors, pairs), block_packer(lanes, vectors)
    block_bytes = Panel(lanes * vectors, 1, False).nbytes

    @helper
    def pack_lines(args, scratch, panel):
        lines, turned = scratch + setting(args, at.LINES), scratch + setting(args, EXPANDED)
        if codes:
            for block in range(setting(args, LATENT_DEPTH)):
                for k in range(0, ELEMENTS, lanes):
                    source = lines + 4 * (ELEMENTS * block + k)
                    transpose_block(source, setting(args, LINE_PITCH), turned + 4 * lanes * k, 4 * lanes, lanes)
                pack_block(turned, 4 * lanes, panel + block * block_bytes)
        else:
            transpose(args, lines, setting(args, LATENT_WORDS), panel)

    return pack_lines


def matrix_loader(lanes, vectors, pairs, codes):
    """A helper: bring a head's matrix [outputs, r] to panels, from panel `first` on."""
    expand_row, clear = row_expander(lanes), line_clearer(lanes)
    pack_lines, width = lines_packer(lanes, vectors, pairs, codes), lanes * vectors

    @helper
    def load_matrix(args, scratch, tensor, kind, expand, head, first, panels):
        lines, rank = scratch + setting(args, at.LINES), size(args, VALUES, 3)
        matrix = address(args, tensor) + head * stride(args, tensor, 1)
        for output in range(0, panels * width, lanes):
            for i in range(lanes):
                line = lines + i * setting(args, LINE_PITCH)
                clear(args, line)
                if output + i < size(args, tensor, 2):
                    row = matrix + (output + i) * stride(args, tensor, 2)
                    expand_row(row, stride(args, tensor, 3), kind, expand, rank, line)
            panel = scratch + setting(args, WEIGHTS) + (first + output // width) * setting(args, WEIGHT_BYTES)
            pack_lines(args, scratch, panel + output % width * 4)

    return load_matrix


def transposed_loader(lanes, vectors, pairs, codes):
    """A helper: bring a head's keys [r, outputs] to panels."""
    expand_row, clear, width = row_expander(lanes), line_clearer(lanes), lanes * vectors
    pack_block, block_bytes = block_packer(lanes, vectors), Panel(lanes * vectors, 1, False).nbytes
    rows = ELEMENTS if codes else 2 if pairs else 1

    @helper
    def load_row(args, head, k, line):
        clear(args, line)
        if k < size(args, KEYS, 2):
            row = address(args, KEYS) + head * stride(args, KEYS, 1) + k * stride(args, KEYS, 2)
            kind, expand = setting(args, at.SINK_KIND), setting(args, KEYS_EXPAND)
            expand_row(row, stride(args, KEYS, 3), kind, expand, size(args, KEYS, 3), line)

    @helper
    def load_transposed(args, scratch, head):
        lines, pitch = scratch + setting(args, at.LINES), setting(args, LINE_PITCH)
        for k in range(0, size(args, KEYS, 2), rows):
            for i in range(rows):
                load_row(args, head, k + i, lines + i * pitch)
            for output in range(0, setting(args, KEY_PANELS) * width, lanes):
                line = lines + 4 * output
                panel = scratch + setting(args, WEIGHTS) + output // width * setting(args, WEIGHT_BYTES)
                if codes:
                    pack_block(line, pitch, panel + k // rows * block_bytes + output % width * 4)
                else:
                    v = load_f32(line, "f32", lanes)
                    if pairs:
                        v = interleave(v, load_f32(line + pitch, "f32", lanes))
                    store_f32(panel + 4 * (k // rows * width + output % width), "f32", v)

    return load_transposed


def weights_loader(lanes, vectors, pairs, codes, transposed):
    """A helper: bring a head's weights to panels: those of keys, which may be transposed, then those of values."""
    load_matrix = matrix_loader(lanes, vectors, pairs, codes)
    load_transposed = transposed_loader(lanes, vectors, pairs, codes)

    @helper
    def load_weights(args, scratch, head):
        keys, values = setting(args, KEY_PANELS), setting(args, VALUE_PANELS)
        if transposed:
            load_transposed(args, scratch, head)
        else:
            load_matrix(args, scratch, KEYS, setting(args, at.SINK_KIND), setting(args, KEYS_EXPAND), head, 0, keys)
        load_matrix(args, scratch, VALUES, setting(args, at.V_KIND), setting(args, at.V_EXPAND), head, keys, values)

    return load_weights
