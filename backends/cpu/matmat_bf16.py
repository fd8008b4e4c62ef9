"""Products of bf16 weights with many columns, by the processor's dot products of pairs of bfloat16 (see bf16.py).

x is rounded to bf16, as llama.cpp does. Both operands are brought into words of two neighbours of a row: x as tiles,
with the words of a tile's columns side by side; the weights, a panel at a time, with the words of a panel's rows side
by side.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from graphrt.backends.cpu import bf16
from graphrt.backends.cpu.args import address, size, stride, word
from graphrt.backends.cpu.codes import prefetch
from graphrt.backends.cpu.expert_sums import SUM, end_turn, item_finder
from graphrt.backends.cpu.glu import ACTIVATIONS
from graphrt.backends.cpu.grouping import (
    FIRST,
    FIRST_TILE,
    LAST,
    MATRIX,
    SLICE_FIRST,
    SLICE_LAST,
    UP,
    W,
    group_count,
    group_word,
    matrix_address,
    prepared,
    scratch,
)
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.jit import Kernel
from graphrt.backends.cpu.matmat import TILES, prefetch_rows, results_bytes, results_of
from graphrt.backends.cpu.memory import emit_prefetch, load_f32_first, load_vector, store_f32
from graphrt.backends.cpu.simd import F32, I64, broadcast, constant, literal
from graphrt.backends.cpu.tile import loop, tile, transpose_block
from graphrt.ops.matmul import mul_mat_transposed
from graphrt.tensor import Tensor

LANES = bf16.LANES
DEPTH = 1024  # elements of a panel
PANELS = 2  # filled at a time: each tile of x that comes to the first-level cache is used so often; or both halves
BLOCK = 2 * LANES  # elements of a row in a vector of words
AHEAD = 4 * 64  # bytes of a row, where no product is under way


def takes(node: Tensor) -> bool:
    """Whether a product with many columns goes this way."""
    w = node.srcs[0]
    assert w is not None
    if node.op is mul_mat_transposed:
        return False
    return w.dtype.name == "bf16" and w.has_dense_rows and bf16.has_pairs()


def scratch_bytes(halves: int) -> int:
    """Scratch memory of a thread: panels, and a block of their rows and tiles of y."""
    shape = tile()
    panels = PANELS * shape.rows * DEPTH * 2
    return panels + LANES * 4 * LANES + results_bytes(shape.rows, shape.columns, halves)


def mul_mat_pairs(vectors: int, columns: int, unit: str) -> Kernel:
    """Native: y for every column, over a slice of x prepared as tiles of `columns` columns; later slices add to it.

    While panels are multiplied, the rows of the next ones are prefetched.

    Args:
        unit: empty, or the op that reads the product, which is made instead, as by `mul_mat_tiles`.
    """
    rows_of_panel, halves, is_sum = LANES * vectors, 2 if unit in ACTIVATIONS else 1, unit == SUM
    rows_of_band = PANELS // halves * rows_of_panel
    multiply, fill_panel = pairs_multiplier(vectors, columns), panel_filler(vectors)
    put = results_of(unit, LANES, rows_of_panel, columns)
    take_item, look_ahead = item_finder(unit, True), item_finder(unit, False)
    panel_bytes, result_bytes = rows_of_panel * DEPTH * 2, 4 * rows_of_panel * columns
    strip_at = PANELS * panel_bytes
    result_at = strip_at + LANES * 4 * LANES
    sums_at = result_at + halves * result_bytes

    @helper
    def source_of(args, item, bands):
        """Where the rows of an item begin."""
        matrix = matrix_address(args, group_word(args, item // bands, MATRIX))
        return matrix + item % bands * rows_of_band * stride(args, W, 2)

    def run(args, ith, nth):
        first_element, last_element = word(args, SLICE_FIRST), word(args, SLICE_LAST)
        height, pitch, words = size(args, W, 2), stride(args, W, 2), (last_element - first_element + 1) // 2
        bands = (height + rows_of_band - 1) // rows_of_band
        total = group_count(args) * bands
        panels = scratch(args, ith)
        result = panels + result_at
        to_next_panel = address(args, UP) - address(args, W) if halves > 1 else rows_of_panel * pitch
        item = take_item(args, -1, bands, ith, nth)
        while item < total:
            following = look_ahead(args, item % bands, bands, ith, nth)
            group, row = item // bands, item % bands * rows_of_band
            rows = min(rows_of_band, height - row)
            used = halves if halves > 1 else (rows + rows_of_panel - 1) // rows_of_panel
            source = source_of(args, item, bands)
            first, last = group_word(args, group, FIRST), group_word(args, group, LAST)
            at_once = TILES * columns if halves > 1 else last - first
            tiles = prepared(args) + group_word(args, group, FIRST_TILE) * words * columns * 4
            for begin in range(first, last, at_once):
                for start in range(first_element, max(last_element, 1), DEPTH):
                    depth, is_last = min(DEPTH, last_element - start), start + DEPTH >= last_element
                    for p in range(used):
                        weights, panel = source + p * to_next_panel + 2 * start, panels + p * panel_bytes
                        left = rows - p * rows_of_panel if halves == 1 else rows
                        fill_panel(weights, pitch, left, depth, panel, panels + strip_at)
                    ahead, lines = source + 2 * (start + DEPTH), (last_element - start - DEPTH + 31) // 32
                    if lines <= 0:
                        ahead = source_of(args, min(following, total - 1), bands) + 2 * first_element
                        lines = (last_element - first_element + 31) // 32
                    lines = max(1, min(lines, DEPTH // 32))
                    x, sums, line = tiles + (start - first_element) // 2 * columns * 4, panels + sums_at, 0
                    for column in range(begin, min(begin + at_once, last), columns):
                        count = min(columns, last - column)
                        for p in range(used):
                            below = p * rows_of_panel if halves == 1 else 0
                            if halves == 1 or (is_last and p == 0):
                                prefetch_rows(args, column, count, row + below, rows_of_panel)
                            is_new, next_row = line < PANELS * rows_of_panel * lines, line // lines
                            row_ahead = ahead + next_row // rows_of_panel * to_next_panel
                            row_ahead = row_ahead + next_row % rows_of_panel * pitch if is_new else x
                            next_line = row_ahead + line % lines * 64 if is_new else x
                            end_of_row = row_ahead + lines * 64 if is_new else x + 64
                            step, distance = pitch - lines * 64 if is_new else -64, pitch if is_new else 0
                            panel, target = panels + p * panel_bytes, result + (p * result_bytes if halves > 1 else 0)
                            multiply(panel, x, (depth + 1) // 2, target, count, next_line, end_of_row, step, distance)
                            line += (depth + 1) // 2
                            if p + 1 >= halves:
                                left = min(rows_of_panel, rows - below)
                                put(args, column, count, row + below, left, start > 0, is_last, result, sums)
                        x += words * columns * 4
                        sums += halves * result_bytes
                tiles += TILES * words * columns * 4
            if is_sum:
                end_turn(args, item % bands)
                following = take_item(args, item % bands, bands, ith, nth)
            item = following

    return run


def pairs_multiplier(vectors: int, columns: int):
    """A helper: multiply_pairs for 1 … columns columns, by the least of three compiled widths that holds them."""
    most, half = 2 * columns // 3, columns // 3

    @helper
    def multiply(panel, x, words, target, count, line, end, step, pitch):
        if count > most:
            multiply_pairs(panel, x, words, target, line, end, step, pitch, vectors, columns, columns)
        elif count > half:
            multiply_pairs(panel, x, words, target, line, end, step, pitch, vectors, columns, most)
        else:
            multiply_pairs(panel, x, words, target, line, end, step, pitch, vectors, columns, half)

    return multiply


@intrinsic(prefer_literal=True)
def multiply_pairs(typingctx, panel, x, words, target, line, end, step, pitch, vectors, tile_columns, columns):
    """target[c, r] = sum over k < words of panel[k, r] · x[k, c], of words of two bfloat16.

    Args: panel [words, 16 · vectors]; x [words, tile_columns], of which `columns` are multiplied; target [columns,
          16 · vectors] float32. As many lines of memory as there are words are prefetched: from the address `line` up
          to `end`, where a row ends; another begins `step` bytes on, and ends `pitch` bytes on. The last three are
          constants.
    """
    constants = [literal(item) for item in (vectors, tile_columns, columns)]
    if None in constants:
        return None
    signature = types.void(*[types.int64] * 8, vectors, tile_columns, columns)

    def codegen(context, builder, signature, values):
        _emit_multiply(builder, *values[:8], *constants)
        return context.get_dummy_value()

    return signature, codegen


def _emit_multiply(builder, panel, x, words, target, line, end, step, pitch, vectors, tile_columns, columns):
    vector = ir.VectorType(F32, LANES)

    def body(k, sums):
        *sums, line, end = sums
        emit_prefetch(builder, line)
        following = builder.add(line, I64(64))
        is_row_done = builder.icmp_signed(">=", following, end)
        turn = builder.select(is_row_done, step, I64(0))
        following, end = builder.add(following, turn), builder.add(end, builder.select(is_row_done, pitch, I64(0)))
        at = builder.add(panel, builder.mul(k, I64(4 * LANES * vectors)))
        rows = [load_vector(builder, builder.add(at, I64(4 * LANES * v)), F32, LANES) for v in range(vectors)]
        x_at = builder.add(x, builder.mul(k, I64(4 * tile_columns)))
        result = []
        for c in range(columns):
            place = builder.inttoptr(builder.add(x_at, I64(4 * c)), F32.as_pointer())
            both = broadcast(builder, builder.load(place, align=4), LANES)
            result += [bf16.add_products(builder, rows[v], both, sums[c * vectors + v]) for v in range(vectors)]
        return [*result, following, end]

    *sums, _, _ = loop(builder, words, 1, [*[constant(vector, 0.0)] * (columns * vectors), line, end], body)
    for i, total in enumerate(sums):
        place = builder.add(target, I64(4 * LANES * i))
        builder.store(total, builder.inttoptr(place, vector.as_pointer()), align=4)


def panel_filler(vectors: int):
    """A helper: `rows` rows of `depth` elements as a panel, with zeros for absent rows and the last word's absent half.

    `strip` is memory for a block of rows that is not whole.
    """
    pitch_of_panel = 4 * LANES * vectors

    @helper
    def fill_panel(source, pitch, rows, depth, panel, strip):
        for vector in range(vectors):
            first, count = source + vector * LANES * pitch, rows - vector * LANES
            for k in range(0, depth, BLOCK):
                place = panel + (k // 2) * pitch_of_panel + 4 * LANES * vector
                if count >= LANES and depth - k >= BLOCK:
                    for r in range(LANES):
                        prefetch(first + r * pitch + 2 * k + AHEAD)
                    transpose_block(first + 2 * k, pitch, place, pitch_of_panel, LANES)
                else:
                    copy_block(first + 2 * k, pitch, count, depth - k, strip)
                    transpose_block(strip, 4 * LANES, place, pitch_of_panel, LANES)

    return fill_panel


@helper
def copy_block(source, pitch, rows, count, strip):
    """Up to 16 rows of up to 32 elements, and zeros."""
    for r in range(LANES):
        present = min(count, BLOCK) if r < rows else 0
        line = source + r * pitch
        store_f32(strip + 4 * LANES * r, "bf16", load_f32_first(line, "bf16", LANES, present))
        rest = load_f32_first(line + 2 * LANES, "bf16", LANES, present - LANES)
        store_f32(strip + 4 * LANES * r + 2 * LANES, "bf16", rest)
