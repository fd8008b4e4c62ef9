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


def latents_loader(lanes, pairs, mode):
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
            pack_row(row, setting(args, LATENT_WORDS), latent)
            key = scratch + setting(args, at.KEYS) + c * setting(args, at.KEY_PITCH)
            pack_row(row + 4 * rank, setting(args, ROPE_WORDS), key + 4 * setting(args, ROPE_AT))

    return load_latents


def keys_packer(lanes, vectors):
    """A helper: a panel of keys from EXPANDED, as pairs, to their place in KEYS."""
    width = lanes * vectors

    @helper
    def pack_keys(args, scratch, panel, cells):
        for c in range(cells):
            source = scratch + setting(args, EXPANDED) + 4 * width * c
            target = scratch + setting(args, at.KEYS) + c * setting(args, at.KEY_PITCH) + 2 * width * panel
            for i in range(0, width, 2 * lanes):
                first = load_f32(source + 4 * i, "f32", lanes)
                second = load_f32(source + 4 * (i + lanes), "f32", lanes)
                store_f32(target + 2 * i, "f32", pack(first, second))

    return pack_keys


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


def latents_expander(lanes, vectors, columns, pairs):
    """A helper: the keys and values of a head for a chunk, by products of the latents with the head's weights."""
    multiply, width = multiply_up_to(lanes, vectors, columns, False, "pairs" if pairs else "f32"), lanes * vectors
    pack_keys, pack_values = keys_packer(lanes, vectors), values_packer(lanes, vectors)

    @helper
    def expand(args, scratch, cells):
        key_panels, latents = setting(args, KEY_PANELS), scratch + setting(args, LATENTS)
        x_pitch, depth = setting(args, LATENT_PITCH), setting(args, LATENT_DEPTH)
        for panel in range(key_panels + setting(args, VALUE_PANELS)):
            weights = scratch + setting(args, WEIGHTS) + panel * setting(args, WEIGHT_BYTES)
            target, pitch = scratch + setting(args, EXPANDED), 4 * width
            if not pairs and panel < key_panels:
                target, pitch = scratch + setting(args, at.KEYS) + 4 * width * panel, setting(args, at.KEY_PITCH)
            elif not pairs:
                target = scratch + setting(args, at.VALUES) + (panel - key_panels) * setting(args, at.PANEL_BYTES)
            for c in range(0, cells, columns):
                x = latents + c * x_pitch
                multiply(weights, 4 * width, x, 4, x_pitch, depth, target + c * pitch, pitch, cells - c)
            if pairs and panel < key_panels:
                pack_keys(args, scratch, panel, cells)
            elif pairs:
                pack_values(args, scratch, panel - key_panels, cells)

    return expand
