"""How attention is cut into tasks, and by which way each is done: worked out once for each node.

T tokens, H query heads, Hkv heads of keys and values, G = H / Hkv, N cells. The rows of one kv head are its T · G
queries: row r is token r // G with the query r % G of the group. A task is one kv head with a block of rows; it goes
through the cells chunk by chunk. Where there are fewer tasks than threads, each is done in parts, by cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import gcd

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from graphrt import dtypes
from graphrt.backends.cpu import host, int16
from graphrt.backends.cpu.args import TENSOR_WORDS, load_word, size
from graphrt.backends.cpu.attention_tile import DIRECT
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.tile import tile
from graphrt.ops.rope import Rotation
from graphrt.tensor import Tensor

CELLS = 64  # in a chunk
ROWS, BLOCK_BYTES = 256, 448 << 10  # in a block, at most: its queries and totals stay in the second-level cache
FEW = 8  # fewer rows than this, or than lanes, for each kv head are multiplied row by row (attention_few.py)
FEW_ROWS = 16  # of a kv head, at most, that are few
MOST_IN_PART = 256  # elements of latents (see attention_parts.py)
RUN = 4  # kv heads of a task of few rows
FEW_PITCH = 4 * (CELLS + 16)  # of such a row's scores
LINE = 64  # bytes of a cache line

TENSORS = 11
Y, Q, K, V, Q_POS, Q_SEQ, CELL_POS, CELL_SEQ, SINKS, CELL_ROTATION, FREQ_FACTORS = range(TENSORS)

# The scalars of the kernels' calls. Pitches, places in a thread's scratch memory, and its size are in bytes.
SCALE, SOFTCAP, WINDOW, Q_KIND, K_KIND, V_KIND, SINK_KIND, K_EXPAND, V_EXPAND, K_BYTES, V_BYTES, SHARED = range(12)
GROUP, BLOCK, KEY_PITCH, TILE_PITCH, VALUE_PITCH, PANEL_BYTES, SUMS, TOTALS, RESULT_BYTES = range(12, 21)
FIRST, PAIRS, TURN_BYTES, MAGNITUDE = range(21, 25)  # of the rotation of keys
KEY_ROW, PART_WIDTH, QUERY_BYTES = range(25, 28)
KEY_FACTORS_STEP = 4 * CELLS  # from the factors of keys' first parts to those of the next
LINES, PANELS, POSITIONS, KEYS, VALUES, SCORES, FACTORS, SEEN, TURNER, TURNED, TURNS, RESULT = range(28, 40)
QUERY_FACTORS, KEY_FACTORS, VALUE_FACTORS = range(40, 43)
SCRATCH_BYTES, WORKSPACE, COUNTER = range(43, 46)
SPEEDS = COUNTER + 1  # one for each pair, in float64


@intrinsic
def setting(typingctx, args, index):
    """The integer scalar `index` of a call."""

    def codegen(context, builder, signature, values):
        return load_word(builder, values[0], builder.add(values[1], ir.IntType(64)(TENSORS * TENSOR_WORDS)))

    return types.int64(types.int64, types.int64), codegen


@helper
def rows_of_head(args):
    """Rows of one kv head."""
    return size(args, Q, 1) * setting(args, GROUP)


@helper
def groups_of(kv_heads, cells, nth):
    """Tasks of few rows: each is a run of kv heads, whose rows of the cache lie side by side.

    Who sees a chunk is found out once for a task, so that runs are kept long where the cells make parts enough.
    """
    if nth == 1:
        return 1
    long, chunks = max(1, kv_heads // RUN), (cells + CELLS - 1) // CELLS
    return min(long if long * chunks >= 2 * nth else kv_heads, 2 * nth)


@helper
def parts_of(tasks, cells, nth):
    """Parts that each task is done in."""
    if nth == 1 or tasks == 0 or tasks >= 2 * nth:
        return 1
    return max(1, min((2 * nth + tasks - 1) // tasks, (cells + CELLS - 1) // CELLS))


@dataclass(frozen=True)
class Layout:
    """Sizes and places of one attention node."""

    node: Tensor

    @cached_property
    def sources(self) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.node.srcs[:3]
        assert q is not None
        assert k is not None
        assert v is not None
        return q, k, v

    @property
    def rope(self) -> Rotation | None:
        found = self.node.params["rope"]
        assert found is None or isinstance(found, Rotation)
        return found if found and found.width(self.sources[1].shape[2]) else None

    @property
    def pairs(self) -> int:
        """Pairs of elements that turn in each key."""
        return self.rope.width(self.sources[1].shape[2]) // 2 if self.rope else 0

    @property
    def turning(self) -> tuple[str, bool]:
        """The rotation's mode, "" where there is none; whether whole vectors turn, so that keys can on their way."""
        if self.rope is None:
            return "", False
        first, width = self.rope.first, self.sources[1].shape[2]
        whole = width % tile().rows == 0
        parts = (first, self.pairs, width - first - 2 * self.pairs)
        return self.rope.mode, whole and all(part % host.level().lanes == 0 for part in parts)

    @property
    def group(self) -> int:
        q, k, _ = self.sources
        return q.shape[1] // k.shape[1]

    @property
    def rows(self) -> int:
        """Rows of one kv head."""
        return self.sources[0].shape[0] * self.group

    @property
    def integers(self) -> bool:
        """Whether products are those of int16: where neither keys nor values are float32 (see int16.py).

        Of keys and values in the same memory, only those that are latents in whole vectors.
        """
        _, k, v = self.sources
        halves = k.dtype is not dtypes.f32 and v.dtype is not dtypes.f32
        whole = v.shape[2] % tile().rows == 0 if self.shared else k.root is not v.root
        return not self.few and int16.has_pairs() and halves and whole

    @property
    def part_width(self) -> int:
        """Elements of keys whose products are summed as integers: a part that has a factor (see attention_parts.py)."""
        keys, _, values = self.pitches
        return gcd(values // 4, MOST_IN_PART) if self.integers and self.shared else keys // 4

    @property
    def block(self) -> int:
        """Rows of a task: blocks are of one size but for the last."""
        if self.few:
            return max(1, self.rows)
        keys, _, values = self.pitches
        width = host.level().lanes * self.vectors
        most = max(width, min(ROWS, BLOCK_BYTES // (keys + values) // width * width))
        blocks = -(-self.rows // most)
        return max(1, min(self.rows, up(-(-self.rows // max(1, blocks)), width)))

    @property
    def few(self) -> bool:
        """Whether the rows of a kv head are so few that panels would be mostly empty."""
        return self.rows < max(FEW, host.level().lanes)

    @property
    def vectors(self) -> int:
        """Vectors of rows in a panel."""
        return 1 if self.rows <= host.level().lanes else tile().vectors

    @property
    def padded(self) -> int:
        """Rows of a block, in whole panels."""
        return up(self.block, host.level().lanes * self.vectors)

    @property
    def shared(self) -> bool:
        """Whether v is the first elements of k's rows, none of which turn, so that one tile serves both."""
        _, k, v = self.sources
        if self.rope and self.rope.first < v.shape[2]:
            return False
        same_rows = v.strides == k.strides and v.shape[2] <= k.shape[2]
        return v.root is k.root and v.offset == k.offset and v.dtype is k.dtype and same_rows

    @property
    def blocks(self) -> int:
        """Blocks of rows of all kv heads; each has a result."""
        return self.sources[1].shape[1] * -(-self.rows // self.block)

    @property
    def direct(self) -> tuple[str, str]:
        """The dtypes of k and v where rows can be read as they lie, in whole vectors; "" where not."""
        keys, values = (
            x.dtype.name if x.dtype.name in DIRECT and x.shape[2] % tile().rows == 0 else "" for x in self.sources[1:]
        )
        if self.rope is not None and not self.turning[1]:
            keys = ""
        if values and self.stripe * host.level().lanes % dtypes.get(values).block:
            values = ""
        return keys, values

    @property
    def stripe(self) -> int:
        """Vectors of values that few rows mix at a time: as many as registers hold the sums of, for four rows."""
        most = 4 if host.level().name in ("avx512", "neon") else 2
        return most if self.pitches[2] % (4 * host.level().lanes * most) == 0 else tile().vectors

    @cached_property
    def pitches(self) -> list[int]:
        """Of a float32 row of q and k, of a row of the tile of values, of a row of totals."""
        _, k, v = self.sources
        keys, values = (4 * up(max(1, each.shape[2]), tile().rows) for each in (k, v))
        if self.integers:
            return [keys, 4 * tile().rows, values]
        return [keys, keys if self.shared else values, values]

    @property
    def panel_bytes(self) -> int:
        """From one stripe of values, as wide as a tile, to the next: rows of the tile hold all.

        Or of integers each has its own, and an odd number of cache lines, so that they do not collide.
        """
        stripe = 4 * tile().rows
        return CELLS // 2 * stripe + LINE if self.integers else stripe

    @property
    def key_row(self) -> int:
        """Bytes of a row of the tile of keys: of integers an odd number of cache lines, so that rows do not collide."""
        keys = self.pitches[0]
        return keys // 2 // LINE // 2 * 2 * LINE + LINE if self.integers else keys


def up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
