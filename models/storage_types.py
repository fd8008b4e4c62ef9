"""Which type a weight is stored in: the one asked for, unless its name or its row length forbids it."""

from __future__ import annotations

from graphrt import dtypes
from graphrt.dtypes import DType

# The routers decide which experts run, and one-dimensional weights cost nothing: both stay exact.
ALWAYS_F32 = ("_norm.weight", ".ffn_gate_inp.weight", "exp_probs_b.bias", "rope_freqs.weight")

# llama-quantize's answer where a row is not a multiple of 256.
FALLBACK = {
    dtypes.q2_k: dtypes.q4_0,
    dtypes.q3_k: dtypes.q4_0,
    dtypes.iq4_xs: dtypes.iq4_nl,
    dtypes.q4_k: dtypes.q5_0,
    dtypes.q5_k: dtypes.q5_1,
    dtypes.q6_k: dtypes.q8_0,
}


def storage_type(name: str, shape: tuple[int, ...], wanted: DType) -> DType:
    """The type for the tensor `name` of `shape` when `wanted` is asked for.

    Norms, routers and one-dimensional tensors are f32. A K-quant whose row is not a multiple of 256 falls back as
    llama-quantize does; a block type whose row is not a multiple of its block becomes f16.
    """
    if len(shape) == 1 or name.endswith(ALWAYS_F32):
        return dtypes.f32
    if shape[-1] % wanted.block:
        wanted = FALLBACK.get(wanted, wanted)
    return dtypes.f16 if shape[-1] % wanted.block else wanted
