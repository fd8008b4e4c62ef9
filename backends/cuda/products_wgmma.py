"""When gemm_wgmma.cu makes a product of many rows in gemm.cu's place, and in which tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphrt.backends.cuda.hardware import present
from graphrt.backends.cuda.launch import Argument, Launch
from graphrt.backends.cuda.operands import pieces_of_row
from graphrt.backends.cuda.units import Unit

DTYPES = ("f16", "bf16", "q4_0", "q8_0", "q4_k", "q5_k", "q6_k")  # of weights: the usual ones
ROWS, DEPTH, THREADS = 128, 64, 384  # of w in a tile, of k in a step, and of a block, as in gemm_wgmma.cu
TILES = (256, 224, 192, 160, 128)  # rows of x in one, as wgmma takes them
FEWEST_ROWS = 128  # of x that meet a matrix: with fewer, weights' expansion is what takes the time
FEWEST_ROWS_OF_EXPERT = 96  # on average
LEAST_STEPS = 8  # of a part of k
# What time is made of, as the steps of 256 columns that last as long (estimates: 0.9 µs each, 4.3 TB/s): a tile besides
# its steps, a launch, and bytes moved.
OVERHEAD, LAUNCHING, BYTES_OF_STEP = 4, 2, 4 << 20
SLABS, STAGES, JOBS, JOB, ALIGNMENT = 4, 2, 4, 36, 1024

UNIT = Unit("gemm_wgmma", [f"gemm_wgmma<{name}>" for name in DTYPES], registers=168, architecture="90a")


@dataclass(frozen=True)
class Shape:
    """How a product is cut: rows of x in a tile, and parts of k."""

    tile: int
    parts: int = 1


def shape_of(dtype: str, width: int, rows: int, columns: int, batches: int, experts: int | None) -> Shape | None:
    """The shape of a product that gemm_wgmma.cu is to make; None if gemm.cu is.

    wgmma is there on devices of compute capability 9.0 alone, where mma.sync reaches some 60 % of the peak at best.

    Args:
        dtype: of weights as kernels read them.
        width, rows: of a matrix; bf16 parts of float32 side by side.
        columns: rows of x that meet one matrix, or all experts.
        experts: None where one matrix is for all rows.
    """
    if not present().has_wgmma or dtype not in DTYPES or not width or width % DEPTH:
        return None
    if columns < (FEWEST_ROWS if experts is None else FEWEST_ROWS_OF_EXPERT * experts):
        return None
    steps, nbytes = width // DEPTH, batches * rows * columns * 4
    if experts is not None:
        return min(
            (Shape(tile) for tile in TILES), key=lambda shape: _time_of_expert(shape.tile, columns / experts, steps)
        )

    def time(shape: Shape) -> float:
        jobs = batches * -(-rows // ROWS) * -(-columns // shape.tile) * shape.parts
        summing = LAUNCHING + 2 * shape.parts * nbytes / BYTES_OF_STEP if shape.parts > 1 else 0
        return -(-jobs // present().processors) * _time_of_tile(shape.tile, steps / shape.parts) + summing

    most_parts = max(1, steps // LEAST_STEPS)
    return min((Shape(tile, parts) for tile in TILES for parts in range(1, most_parts + 1)), key=time)


def _time_of_tile(columns: float, steps: float) -> float:
    return steps * max(TILES[-1], -(-columns // 32) * 32) / TILES[0] + OVERHEAD


def _time_of_expert(tile: int, rows: float, steps: int) -> float:
    """The time of an expert's tiles, which has so many rows of x as a rule, where chance gives or takes its root."""
    times = []
    for each in (rows - rows**0.5, rows, rows + rows**0.5):
        whole, rest = divmod(each, tile)
        times.append(whole * _time_of_tile(tile, steps) + (_time_of_tile(rest, steps) if rest else 0))
    return sum(times)


def launch(dtype: str, shape: Shape, tiles: int, arguments: Sequence[Argument], note: str) -> Launch:
    """The launch in gemm.cu's place, with its arguments but for the pairs of a row, since x lies in tiles."""
    jobs = tiles * shape.parts
    grid, arguments = [min(jobs, present().processors)], [*arguments, shape.tile, shape.parts, jobs]
    from_memory = dtype == "bf16"
    slabs = SLABS * (TILES[0] * DEPTH * 2) + (SLABS if from_memory else STAGES) * ROWS * DEPTH * 2
    chunks = 0 if from_memory else 2 * ROWS * pieces_of_row(dtype) * 16
    shared = slabs + chunks + TILES[0] * 8 + JOBS * JOB + (2 * STAGES + SLABS) * 8
    shared = -(-shared // ALIGNMENT) * ALIGNMENT  # as the swizzle's pattern: it shall begin and end with the memory
    return Launch(UNIT.kernel(f"gemm_wgmma<{dtype}>"), grid, [THREADS], arguments, shared, note)
