"""Attention by expansion: a chunk of cells becomes a tile of latents, and these the keys and values of one head."""

from __future__ import annotations

from graphrt.backends.cpu import attention_layout as at
from graphrt.backends.cpu.args import TENSOR_WORDS, address, size, stride
from graphrt.backends.cpu.attention_cells import position_of
from graphrt.backends.cpu.attention_layout import setting
from graphrt.backends.cpu.attention_rotation import row_turner, start_turner
from graphrt.backends.cpu.attention_steps import float_setting
from graphrt.backends.cpu.bf16 import interleave, pack
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.memory import load_f32, load_integer, store_f32
from graphrt.backends.cpu.mla_codes import codes_multiplier, pack_latent
from graphrt.backends.cpu.mla_layout import (
    EXPANDED,
    KEY_PANELS,
    LATENT,
    LATENT_DEPTH,
    LATENT_PITCH,
    LATENT_WORDS,
    LATENTS,
    LINE_PITCH,
    ROPE_AT,
    ROPE_WORDS,
    SPEEDS,
    VALUE_PANELS,
    VALUES,
    WEIGHT_BYTES,
    WEIGHTS,
)
from graphrt.backends.cpu.mla_panels import line_clearer, row_expander, row_packer
from graphrt.backends.cpu.tile import multiply_up_to


@helper
def begin_turning(args, scratch):
    """Make the thread's turner ready."""
    speeds, pairs = args + 8 * (at.TENSORS * TENSOR_WORDS + SPEEDS), setting(args, at.PAIRS)
    factors, step = address(args, at.FREQ_FACTORS), stride(args, at.FREQ_FACTORS, 3)
    start_turner(scratch + setting(args, at.TURNER), pairs, speeds, factors, step, float_setting(args, at.MAGNITUDE))


def latents_loader(lanes, pairs, codes, mode):
    """A helper: bring a chunk's latents to LATENTS and their rotated parts to KEYS; cells nobody sees become zeros.

    A cell that is seen by nobody may hold anything, NaN too, and 0 · NaN would spoil the sums.
    """
    expand_row, clear, pack_row = row_expander(lanes), line_clearer(lanes), row_packer(lanes, pairs)
    turn_row = row_turner(lanes, mode, whole=False)

    @helper
    def load_latents(args, scratch, first_cell, cells):
        line, rank = scratch + setting(args, at.LINES), size(args, VALUES, 3)
        zeros = line + setting(args, LINE_PITCH)
        clear(args, line)
        clear(args, zeros)
        for c in range(cells + cells % 2):
            row = zeros
            if c < cells and load_integer(scratch + setting(args, at.SEEN) + c, "i8"):
                source = address(args, LATENT) + (first_cell + c) * stride(args, LATENT, 1)
                kind, expand, count = setting(args, at.K_KIND), setting(args, at.K_EXPAND), size(args, LATENT, 3)
                expand_row(source, stride(args, LATENT, 3), kind, expand, count, line)
                if mode:
                    rotation = position_of(args, at.CELL_ROTATION, first_cell + c)
                    turn_row(scratch + setting(args, at.TURNER), line + 4 * setting(args, at.FIRST), rotation)
                row = line
            latent = scratch + setting(args, LATENTS) + c * setting(args, LATENT_PITCH)
            if codes:
                pack_latent(args, row, latent)
            else:
                pack_row(row, setting(args, LATENT_WORDS), latent)
            key = scratch + setting(args, at.KEYS) + c * setting(args, at.KEY_PITCH)
            pack_row(row + 4 * rank, setting(args, ROPE_WORDS), key + 4 * setting(args, ROPE_AT))

    return load_latents


def keys_placer(lanes, vectors, pairs):
    """A helper: a panel of keys from EXPANDED to their place in KEYS."""
    width = lanes * vectors
    step = lanes * (2 if pairs else 1)

    @helper
    def place_keys(args, scratch, panel, cells):
        start = scratch + setting(args, at.KEYS) + (2 if pairs else 4) * width * panel
        for c in range(cells):
            source, target = scratch + setting(args, EXPANDED) + 4 * width * c, start + c * setting(args, at.KEY_PITCH)
            for i in range(0, width, step):
                v = load_f32(source + 4 * i, "f32", lanes)
                if pairs:
                    store_f32(target + 2 * i, "f32", pack(v, load_f32(source + 4 * (i + lanes), "f32", lanes)))
                else:
                    store_f32(target + 4 * i, "f32", v)

    return place_keys


def values_packer(lanes, vectors):
    """A helper: a panel of values from EXPANDED, as pairs of cells, to VALUES."""
    width = lanes * vectors

    @helper
    def pack_values(args, scratch, panel, cells):
        for c in range(0, cells, 2):
            source = scratch + setting(args, EXPANDED) + 4 * width * c
            target = scratch + setting(args, at.VALUES) + panel * setting(args, at.PANEL_BYTES) + 2 * width * c
            for i in range(0, 4 * width, 4 * lanes):
                first, second = load_f32(source + i, "f32", lanes), load_f32(source + 4 * width + i, "f32", lanes)
                store_f32(target + i, "f32", interleave(first, second))

    return pack_values


def words_multiplier(lanes, vectors, columns, pairs):
    """A helper: target [cells, outputs] = the chunk's latents by a panel of weights, rows `pitch` bytes apart."""
    multiply, width = multiply_up_to(lanes, vectors, columns, False, "pairs" if pairs else "f32"), lanes * vectors

    @helper
    def multiply_panel(args, scratch, panel, target, pitch, cells):
        weights = scratch + setting(args, WEIGHTS) + panel * setting(args, WEIGHT_BYTES)
        latents, x_pitch = scratch + setting(args, LATENTS), setting(args, LATENT_PITCH)
        for c in range(0, cells, columns):
            x, depth = latents + c * x_pitch, setting(args, LATENT_DEPTH)
            multiply(weights, 4 * width, x, 4, x_pitch, depth, target + c * pitch, pitch, cells - c)

    return multiply_panel


def latents_expander(lanes, vectors, columns, pairs, codes):
    """A helper: the keys and values of a head for a chunk, by products of the latents with the head's weights."""
    words, width = words_multiplier(lanes, vectors, columns, pairs), lanes * vectors
    multiply_panel = codes_multiplier(lanes, vectors) if codes else words
    place_keys, pack_values = keys_placer(lanes, vectors, pairs), values_packer(lanes, vectors)
    via_memory = pairs or codes  # keys, whose rows lie apart

    @helper
    def expand(args, scratch, cells):
        expanded, keys = scratch + setting(args, EXPANDED), setting(args, KEY_PANELS)
        for panel in range(keys):
            if via_memory:
                multiply_panel(args, scratch, panel, expanded, 4 * width, cells)
                place_keys(args, scratch, panel, cells)
            else:
                target = scratch + setting(args, at.KEYS) + 4 * width * panel
                multiply_panel(args, scratch, panel, target, setting(args, at.KEY_PITCH), cells)
        for panel in range(setting(args, VALUE_PANELS)):
            target = scratch + setting(args, at.VALUES) + panel * setting(args, at.PANEL_BYTES)
            if pairs:
                multiply_panel(args, scratch, keys + panel, expanded, 4 * width, cells + cells % 2)
                pack_values(args, scratch, panel, cells)
            else:
                multiply_panel(args, scratch, keys + panel, target, 4 * width, cells)

    return expand
