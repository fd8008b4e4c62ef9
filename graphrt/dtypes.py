"""Element types, plain and block-quantized, and their conversion to and from float32.

A quantized dtype packs `block` elements of the last axis into `nbytes` bytes. Its arrays are ordinary NumPy arrays of a
one-field structured dtype, shape [..., K / block], so slicing, transposing or joining outer axes needs no special case.

Of each quantized dtype there is an interleaved form, such as q4_0_r16, in which the rows of matrices stand side by side
(see interleaved.py). Files have none; weights are brought to it as they are loaded, for kernels that read them so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from graphrt.errors import GraphError
from graphrt.interleaved import ROWS as ROWS
from graphrt.interleaved import move, words_of_block

Array = np.ndarray[Any, np.dtype[Any]]

NO_FILE = -1
_SUFFIX = f"_r{ROWS}"


@dataclass(frozen=True, eq=False)
class DType:
    """One element type.

    Args:
        name: lower-case ggml name ("f32", "q4_k").
        block: elements in a block; 1 for plain types.
        nbytes: bytes of a block.
        numpy: dtype of one block as NumPy sees it.
        gguf: the type's number in a GGUF file; NO_FILE where files have no such type.
        rows: that stand side by side; 1, or ROWS in interleaved forms.
    """

    name: str
    block: int
    nbytes: int
    numpy: np.dtype[Any]
    gguf: int
    rows: int = 1

    @property
    def plain(self) -> DType:
        """The dtype whose rows stand one after the other: itself, unless it is an interleaved form."""
        return self if self.rows == 1 else ALL[self.name.removesuffix(_SUFFIX)]

    @property
    def words(self) -> tuple[int, int]:
        """The first byte of a block that interleaved rows keep in a word of four, and one past the last."""
        return words_of_block(self.plain.name, self.nbytes)

    @property
    def is_quantized(self) -> bool:
        return self.block > 1

    @property
    def is_float(self) -> bool:
        return self.name in ("f32", "f16", "bf16")

    @property
    def is_integer(self) -> bool:
        return not self.is_quantized and not self.is_float

    def row_bytes(self, elements: int) -> int:
        """Bytes of a dense row of `elements` elements, a whole number of blocks."""
        return elements // self.block * self.nbytes

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple[Any, ...]:
        return get, (self.name,)


ALL: dict[str, DType] = {}


def _plain(name: str, scalar: Any, gguf: int) -> DType:
    dtype = np.dtype(scalar)
    return ALL.setdefault(name, DType(name, 1, dtype.itemsize, dtype, gguf))


def _blocks(name: str, block: int, nbytes: int, gguf: int) -> DType:
    return ALL.setdefault(name, DType(name, block, nbytes, np.dtype([(name, "u1", (nbytes,))]), gguf))


f32 = _plain("f32", np.float32, 0)
f16 = _plain("f16", np.float16, 1)
bf16 = _plain("bf16", ml_dtypes.bfloat16, 30)
i8 = _plain("i8", np.int8, 24)
i16 = _plain("i16", np.int16, 25)
i32 = _plain("i32", np.int32, 26)
i64 = _plain("i64", np.int64, 27)
q4_0 = _blocks("q4_0", 32, 18, 2)
q4_1 = _blocks("q4_1", 32, 20, 3)
q5_0 = _blocks("q5_0", 32, 22, 6)
q5_1 = _blocks("q5_1", 32, 24, 7)
q8_0 = _blocks("q8_0", 32, 34, 8)
q2_k = _blocks("q2_k", 256, 84, 10)
q3_k = _blocks("q3_k", 256, 110, 11)
q4_k = _blocks("q4_k", 256, 144, 12)
q5_k = _blocks("q5_k", 256, 176, 13)
q6_k = _blocks("q6_k", 256, 210, 14)
iq4_nl = _blocks("iq4_nl", 32, 18, 20)
iq4_xs = _blocks("iq4_xs", 256, 136, 23)
mxfp4 = _blocks("mxfp4", 32, 17, 39)

FLOATS = (f32, f16, bf16)
INTEGERS = (i8, i16, i32, i64)
QUANTIZED = tuple(dtype for dtype in ALL.values() if dtype.is_quantized)

INTERLEAVED = {
    name: DType(name, plain.block, plain.nbytes, np.dtype([(name, "u1", (plain.nbytes,))]), NO_FILE, ROWS)
    for plain in QUANTIZED
    for name in (plain.name + _SUFFIX,)
}

_BY_NUMPY = {dtype.numpy: dtype for dtype in (*ALL.values(), *INTERLEAVED.values())}
_BY_GGUF = {dtype.gguf: dtype for dtype in ALL.values()}


def get(name: str | DType) -> DType:
    """The dtype of that name.

    Raises: GraphError, naming all dtypes, if there is none.
    """
    if isinstance(name, DType):
        return name
    found = ALL.get(name.lower()) or INTERLEAVED.get(name.lower())
    if found is None:
        raise GraphError(f'[dtype] unknown dtype "{name}"; known: {", ".join(ALL)}')
    return found


def from_gguf(number: int) -> DType | None:
    """The dtype with that GGML type number, or None where graphrt has none."""
    return _BY_GGUF.get(number)


def interleaved(dtype: DType) -> DType:
    """The interleaved form of a block-quantized dtype."""
    return INTERLEAVED[dtype.name + _SUFFIX]


def of(array: Array) -> DType:
    """The dtype of a NumPy array.

    Raises: GraphError if no graphrt dtype matches.
    """
    found = _BY_NUMPY.get(array.dtype)
    if found is None:
        raise GraphError(
            f"[dtype] NumPy dtype {array.dtype} has no graphrt dtype; convert to one of "
            f"{', '.join(dtype.name for dtype in ALL.values() if not dtype.is_quantized)} with .astype"
        )
    return found


def shape_of(array: Array) -> tuple[int, ...]:
    """The shape in elements; the last axis of a quantized array counts blocks."""
    dtype = of(array)
    return array.shape if not dtype.is_quantized else (*array.shape[:-1], array.shape[-1] * dtype.block)


def to_f32(array: Array) -> Array:
    """Any array as float32 [..., K]; quantized blocks are expanded."""
    dtype = of(array)
    if not dtype.is_quantized:
        return array.astype(np.float32)
    if dtype.rows > 1:
        return to_f32(move(array, dtype.plain.numpy, dtype.words, apart=False))
    from gguf import GGMLQuantizationType, quants

    blocks = np.ascontiguousarray(array)
    if blocks.size == 0:
        return np.zeros(shape_of(array), np.float32)
    raw = blocks.view(np.uint8).reshape(-1, dtype.nbytes)
    return quants.dequantize(raw, GGMLQuantizationType(dtype.gguf)).astype(np.float32).reshape(shape_of(array))


def can_interleave(shape: tuple[int, ...], dtype: DType) -> bool:
    """Whether a tensor of that shape has an interleaved form: matrices of a block-quantized dtype, of whole ROWS."""
    return dtype.is_quantized and dtype.rows == 1 and len(shape) > 1 and shape[-2] % ROWS == 0


def interleave(array: Array) -> Array:
    """Block-quantized rows in the interleaved form of their dtype, a new array of the same shape.

    Raises: GraphError if they have no such form.
    """
    dtype = of(array)
    if not can_interleave(array.shape, dtype):
        raise GraphError(
            f"[interleave] {dtype.name} {list(shape_of(array))} has no interleaved form; give a block-quantized dtype "
            f"and a multiple of {ROWS} rows"
        )
    return move(array, interleaved(dtype).numpy, dtype.words, apart=True)


def from_f32(array: Array, dtype: DType) -> Array:
    """Float32 [..., K] in `dtype`, rounded to nearest.

    Raises: GraphError if K is not a whole number of blocks, or if the dtype can only be read.
    """
    if not dtype.is_quantized:
        if dtype.is_integer:
            return array.astype(dtype.numpy)
        with np.errstate(over="ignore"):
            return array.astype(dtype.numpy)
    if array.shape[-1] % dtype.block:
        raise GraphError(
            f"[{dtype.name}] a row of {array.shape[-1]} elements is not a whole number of blocks of {dtype.block}; "
            f"pad the row, or choose f16, bf16 or f32"
        )
    blocks_shape = (*array.shape[:-1], array.shape[-1] // dtype.block)
    if array.size == 0:
        return np.zeros(blocks_shape, dtype.numpy)
    from gguf import GGMLQuantizationType, quants

    try:
        raw = quants.quantize(np.ascontiguousarray(array, np.float32), GGMLQuantizationType(dtype.gguf))
    except NotImplementedError as error:
        raise GraphError(
            f"[{dtype.name}] weights in {dtype.name} can be read but not written here; "
            f"write one of {', '.join(writable())}, or quantize with llama-quantize"
        ) from error
    return np.ascontiguousarray(raw).reshape(-1).view(dtype.numpy).reshape(blocks_shape)


def writable() -> list[str]:
    """Names of the dtypes that from_f32 can write."""
    return [dtype.name for dtype in ALL.values() if not dtype.is_quantized] + [
        "q4_0",
        "q4_1",
        "q5_0",
        "q5_1",
        "q8_0",
        "mxfp4",
    ]
