"""Expansion in int8: a head's weights as panels of codes in which each block of 32 has a scale, and latents likewise.

Latents are rounded as mul_mat rounds x (see int8_form.py). Weights are rounded anew, in blocks along the axis that is
summed over, whichever way they are stored: those of q8_0 along that axis keep their codes, and of dtypes with fewer
bits rounding to eight changes less than those left out.
"""

from __future__ import annotations

import numpy as np

from graphrt.backends.cpu.attention_cells import ZERO
from graphrt.backends.cpu.attention_layout import setting
from graphrt.backends.cpu.dot import store_bytes
from graphrt.backends.cpu.grouping import COLUMN_BYTES, X_ROW
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.int8_codes import ROUNDING, ROUNDING_BITS, write_codes
from graphrt.backends.cpu.int8_form import ELEMENTS, X_BYTES, Panel, bias, shape
from graphrt.backends.cpu.int8_tile import multiply_up_to
from graphrt.backends.cpu.memory import load_f32, store_f32, store_integer
from graphrt.backends.cpu.mla_layout import COLUMNS, LATENT_DEPTH, LATENT_PITCH, LATENTS, WEIGHT_BYTES, WEIGHTS
from graphrt.backends.cpu.simd import bits_as_f32, bits_as_i32, fma, select, splat

_MAGNITUDE = np.int32(0x7FFFFFFF)  # the bits of a float32 but its sign; as integers, those of NaN are above infinity's
_LEAST = np.float32(1e-30)  # a block of lesser weights has codes 0
_MOST = np.float32(127)
_BYTE = np.int32(0xFF)


def block_packer(lanes, vectors):
    """A helper: write 32 rows of `lanes` float32 as a block of so many rows of a panel: codes, scales and starts."""
    form = Panel(lanes * vectors, 1, False)
    line, scales, starts, shift = form.line, form.scales, form.starts, bias()

    @helper
    def code_of(row, inverse):
        rounded = fma(load_f32(row, "f32", lanes), inverse, splat(np.float32(ROUNDING), lanes))
        return bits_as_i32(rounded) - np.int32(ROUNDING_BITS)

    @helper
    def pack_block(rows, pitch, target):
        largest = splat(np.int32(0), lanes)
        for k in range(ELEMENTS):
            magnitude = bits_as_i32(load_f32(rows + k * pitch, "f32", lanes)) & _MAGNITUDE
            largest = select(magnitude > largest, magnitude, largest)
        top = bits_as_f32(largest)
        inverse = select(top > _LEAST, splat(_MOST, lanes) / top, splat(ZERO, lanes))
        total = splat(np.int32(0), lanes)
        for i in range(ELEMENTS // 4):
            row = rows + 4 * i * pitch
            a, b = code_of(row, inverse), code_of(row + pitch, inverse)
            c, d = code_of(row + 2 * pitch, inverse), code_of(row + 3 * pitch, inverse)
            low = (a & _BYTE) | ((b & _BYTE) << np.int32(8))
            store_bytes(target + i * line, low | ((c & _BYTE) << np.int32(16)) | (d << np.int32(24)))
            total = total + ((a + b) + (c + d))
        store_f32(target + scales, "f32", top / _MOST)
        if shift:
            store_bytes(target + starts, splat(np.int32(0), lanes) - (total << np.int32(7)))

    return pack_block


@helper
def pack_latent(args, row, latent):
    """Write a latent of float32 as codes."""
    for block in range(setting(args, LATENT_DEPTH)):
        write_codes(row + 4 * ELEMENTS * block, latent + X_BYTES * block, False)


def columns_numberer():
    """A helper: number the columns of a tile at COLUMNS, as tables of products do."""
    columns = shape().columns

    @helper
    def number_columns(args, scratch):
        for column in range(columns):
            store_integer(scratch + setting(args, COLUMNS) + COLUMN_BYTES * column + 8 * X_ROW, "i64", column)

    return number_columns


def codes_multiplier(lanes, vectors):
    """A helper: target [cells, outputs] = the chunk's latents by a panel of weights, rows side by side."""
    columns, width = shape().columns, lanes * vectors
    multiply = multiply_up_to(width, 1, False, columns)

    @helper
    def multiply_panel(args, scratch, panel, target, pitch, cells):
        weights = scratch + setting(args, WEIGHTS) + panel * setting(args, WEIGHT_BYTES)
        latents, x_pitch = scratch + setting(args, LATENTS), setting(args, LATENT_PITCH)
        numbers, blocks = scratch + setting(args, COLUMNS), setting(args, LATENT_DEPTH)
        for c in range(0, cells, columns):
            x, y, count = latents + c * x_pitch, target + c * pitch, min(columns, cells - c)
            multiply(weights, blocks, x, x_pitch, numbers, count, y, weights, 0)

    return multiply_panel
