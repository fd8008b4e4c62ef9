"""How attention by expansion is cut into tasks, and where a thread's scratch memory holds what.

T tokens, H heads, N cells, r width of a latent, dn and dr width of a head's key without and with rotation, dv of its
value. A task is one head with all T queries; it goes through the cells chunk by chunk, so that each latent is expanded
once for a head. Where there are fewer heads than threads, each is done in parts, by cells.

Tiles are made of words of 32 bits: a float32, or a pair of bfloat16 that are neighbours along the axis summed over.
Latents and the weights that expand them may be int8 instead, in blocks of 32 with a scale each (mla_codes.py).
Tensors and scalars stand where attention has those of the same use (attention_layout.py), so that both share what reads
them; what only this op has follows as extras.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np

from graphrt import dtypes
from graphrt.backends.cpu import attention_layout as at
from graphrt.backends.cpu import bf16, host
from graphrt.backends.cpu.args import size
from graphrt.backends.cpu.attention_layout import parts_of
from graphrt.backends.cpu.attention_rotation import turner_bytes
from graphrt.backends.cpu.elements import kinds, present
from graphrt.backends.cpu.grouping import COLUMN_BYTES
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.int8_form import ELEMENTS, X_BYTES, Panel, has_byte_products, shape
from graphrt.backends.cpu.tile import tile
from graphrt.backends.cpu.transfer import expand_address
from graphrt.ops.rope import Rotation
from graphrt.tensor import Tensor

CELLS = 128  # in a chunk
LINE = 64  # bytes of a cache line

LATENT, VALUES, KEYS = at.K, at.V, at.SINKS

# The extras: of the dtypes and widths, pitches and sizes in bytes, depths in words, places in the scratch memory.
_EXTRAS = at.COUNTER + 1
KEYS_EXPAND, LATENT_PITCH, LINE_PITCH = range(_EXTRAS, _EXTRAS + 3)
LATENT_WORDS, ROPE_WORDS, LATENT_DEPTH, KEY_DEPTH, ROPE_AT = range(_EXTRAS + 3, _EXTRAS + 8)
KEY_PANELS, VALUE_PANELS, WEIGHT_BYTES, QUERY_BYTES = range(_EXTRAS + 8, _EXTRAS + 12)
WEIGHTS, LATENTS, EXPANDED, COLUMNS = range(_EXTRAS + 12, _EXTRAS + 16)
SPEEDS = _EXTRAS + 16  # one for each pair of the rotation, in float64


@helper
def rope_width(args):
    """dr: elements of a latent's row past the latent."""
    return size(args, LATENT, 3) - size(args, VALUES, 3)


@helper
def nope_width(args):
    """dn: elements of a query before the rotated ones."""
    return size(args, at.Q, 3) - rope_width(args)


@helper
def parts_of_head(args, nth):
    """Parts that the task of each head is done in."""
    return parts_of(size(args, at.Q, 2), size(args, LATENT, 1), nth)


@helper
def chunks(args):
    """Chunks of all cells."""
    return (size(args, LATENT, 1) + CELLS - 1) // CELLS


def takes_pairs(node: Tensor) -> bool:
    """Whether a node may be computed in pairs of bfloat16.

    That is where the cache or a weight is known to no more than bfloat16's precision. A float32 cache never is.
    """
    latent, *weights = present(node)[1:4]
    if not bf16.has_pairs() or latent.dtype is dtypes.f32:
        return False
    return any(each.dtype is dtypes.bf16 or each.dtype.is_quantized for each in (latent, *weights))


def takes_codes(node: Tensor) -> bool:
    """Whether latents may be expanded in int8: by quantized weights, and where the processor has products of bytes."""
    latent, *weights = present(node)[1:4]
    if not has_byte_products() or latent.dtype is dtypes.f32:
        return False
    return all(each.dtype.is_quantized for each in weights)


@dataclass(frozen=True)
class Layout:
    """Sizes and places of one node."""

    node: Tensor

    @cached_property
    def sources(self) -> list[Tensor]:
        """q, latent, keys and values."""
        return present(self.node)[:4]

    @cached_property
    def pairs(self) -> bool:
        return takes_pairs(self.node)

    @cached_property
    def codes(self) -> bool:
        return takes_codes(self.node)

    @property
    def width(self) -> int:
        """Lanes of a panel: queries, or outputs of the expansion."""
        return tile().rows

    @cached_property
    def widths(self) -> tuple[int, int, int, int]:
        """r, dn, dr and dv."""
        q, latent, _, values = self.sources
        rank, rope = values.shape[2], latent.shape[2] - values.shape[2]
        return rank, q.shape[2] - rope, rope, values.shape[1]

    def _words(self, elements: int) -> int:
        return -(-elements // 2) if self.pairs else elements

    @cached_property
    def padded(self) -> tuple[int, int, int, int]:
        """r, dn, dr and dv as tiles hold them, in whole panels; and rows of queries."""
        rank, nope, rope, value = self.widths
        return _up(rank, self.width), _up(nope, self.width), _up(rope, self.width), _up(value, self.width)

    @property
    def rope(self) -> Rotation:
        """The rotation of latents' rows; one that turns nothing where there is none."""
        found, row = self.node.params["rope"], self.sources[1].shape[2]
        assert found is None or isinstance(found, Rotation)
        return found or Rotation(first=row)

    @property
    def turning_pairs(self) -> int:
        return self.rope.width(self.sources[1].shape[2]) // 2

    @property
    def mode(self) -> str:
        """The rotation's mode, "" where nothing turns."""
        return self.rope.mode if self.turning_pairs else ""

    @property
    def rows(self) -> int:
        """Queries in whole panels."""
        return _up(max(1, self.sources[0].shape[0]), self.width)

    @property
    def room(self) -> int:
        """Rows that products may touch past the end of a tile."""
        return tile().columns

    @property
    def depths(self) -> list[int]:
        """Words of a latent and of a rotated part as tiles hold them; to sum over, or blocks of codes of a latent;
        words of a key to sum over, and before its rotated part."""
        rank, _, rope, _ = self.widths
        stored_rank, stored_nope, stored_rope, _ = (self._words(each) for each in self.padded)
        depth = rank // ELEMENTS if self.codes else self._words(rank)
        return [stored_rank, stored_rope, depth, stored_nope + self._words(rope), stored_nope]

    @property
    def pitches(self) -> tuple[int, int, int]:
        """Of the latents', the keys' and the totals' rows: odd numbers of cache lines, so that rows do not collide."""
        rank, nope, rope, value = self.padded
        latent = rank // ELEMENTS * X_BYTES if self.codes else 4 * self._words(rank)
        return _odd(latent), _odd(4 * self._words(nope + rope)), _odd(4 * value)

    @property
    def panels(self) -> tuple[int, int, int]:
        """Bytes of a panel of the expansion's weights, of queries, and of values or scores."""
        rank, nope, rope, _ = self.padded
        weights, queries, values = (4 * self.width * self._words(each) for each in (rank, nope + rope, CELLS))
        if self.codes:
            weights = rank // ELEMENTS * Panel(self.width, 1, False).nbytes
        return weights, queries, values

    @property
    def result(self) -> list[int]:
        """A task's result: the highest logit of each row, at SUMS the sums, at TOTALS the mixed values; its size."""
        return [4 * self.rows, 8 * self.rows, _up(8 * self.rows + (self.rows + self.room) * self.pitches[2], LINE)]

    @property
    def line_pitch(self) -> int:
        """Of a row of float32."""
        rank, nope, rope, _ = self.padded
        return _odd(4 * (max(rank, nope) + rope))

    @cached_property
    def places(self) -> dict[int, int]:
        """Where each part of the scratch memory begins, and at SCRATCH_BYTES the size of the whole."""
        _, nope, _, value = self.padded
        latent_pitch, key_pitch, _ = self.pitches
        weights, queries, values = self.panels
        touched = CELLS + self.room
        sizes = {
            at.LINES: (ELEMENTS if self.codes else host.level().lanes) * self.line_pitch,
            WEIGHTS: (nope + value) // self.width * weights,
            at.PANELS: self.rows // self.width * queries,
            at.POSITIONS: 3 * 4 * self.rows,
            LATENTS: touched * latent_pitch,
            EXPANDED: 4 * touched * self.width if self.pairs or self.codes else 0,
            COLUMNS: COLUMN_BYTES * shape().columns if self.codes else 0,
            at.KEYS: touched * key_pitch,
            at.VALUES: value // self.width * values + 4 * self.room * self.width,
            at.SCORES: 4 * touched * self.width,
            at.FACTORS: 4 * self.width,
            at.SEEN: CELLS,
            at.TURNER: turner_bytes(self.turning_pairs) if self.mode else 0,
            at.RESULT: self.result[-1],
        }
        starts = accumulate((_up(nbytes, LINE) for nbytes in sizes.values()), initial=0)
        return dict(zip([*sizes, at.SCRATCH_BYTES], starts, strict=True))

    @property
    def scalars(self) -> list[float]:
        """What attention has too, by its number; what this op has not is 0."""
        q, latent, keys, values = self.sources
        q_kind, latent_kind, keys_kind, values_kind = kinds([q, latent, keys, values])
        sums, totals, nbytes = self.result
        known = {
            at.SCALE: float(self.node.params["scale"]),
            at.Q_KIND: q_kind,
            at.K_KIND: latent_kind,
            at.V_KIND: values_kind,
            at.SINK_KIND: keys_kind,
            at.K_EXPAND: expand_address(latent.dtype),
            at.V_EXPAND: expand_address(values.dtype),
            at.GROUP: 1,
            at.KEY_PITCH: self.pitches[1],
            at.VALUE_PITCH: self.pitches[2],
            at.PANEL_BYTES: self.panels[2],
            at.SUMS: sums,
            at.TOTALS: totals,
            at.RESULT_BYTES: nbytes,
            at.FIRST: self.rope.first,
            at.PAIRS: self.turning_pairs,
            at.MAGNITUDE: float(self.rope.magnitude),
            **self.places,
        }
        return [known.get(number, 0) for number in range(at.WORKSPACE)]

    @property
    def extras(self) -> list[int]:
        """What only this op has."""
        _, _, keys, _ = self.sources
        _, nope, _, value = self.padded
        return [
            expand_address(keys.dtype),
            self.pitches[0],
            self.line_pitch,
            *self.depths,
            nope // self.width,
            value // self.width,
            *self.panels[:2],
            *(self.places[place] for place in (WEIGHTS, LATENTS, EXPANDED, COLUMNS)),
            *(int(bits) for bits in self.rope.speeds(self.sources[1].shape[2]).view(np.int64)),
        ]

    def workspace(self, threads: int) -> int:
        """Bytes of every thread's scratch memory and of the results that threads share."""
        q, latent = self.sources[:2]
        parts = parts_of(q.shape[1], latent.shape[0], threads)
        shared = q.shape[1] * parts if parts > 1 else 0
        return threads * self.places[at.SCRATCH_BYTES] + shared * self.result[-1]


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _odd(nbytes: int) -> int:
    """The least odd number of cache lines that holds so many bytes."""
    return LINE * (-(-nbytes // LINE) | 1)
