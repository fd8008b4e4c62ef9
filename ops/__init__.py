"""The ops of graphrt, one file for each family: an op is declared once, with shape rule, reference, cost and cases."""

if __name__ != "graphrt.ops":
    raise ImportError(f"`{__name__}` is a folder of the graphrt package; use `from graphrt import ops`")

from graphrt.ops.attention import attention
from graphrt.ops.copy import cast, concat, cont, cpy, dup, repeat
from graphrt.ops.elementwise import add, clamp, div, fill, mul, scale, sub
from graphrt.ops.glu import geglu, reglu, swiglu
from graphrt.ops.matmul import mul_mat, mul_mat_transposed
from graphrt.ops.mla_attention import mla_attention
from graphrt.ops.moe import mul_mat_id, weighted_sum
from graphrt.ops.norm import rms_norm
from graphrt.ops.rope import rope
from graphrt.ops.rows import add_id, get_rows, set_rows
from graphrt.ops.softmax import soft_max, sum_rows
from graphrt.ops.sort import argsort, top_k
from graphrt.ops.unary import exp, gelu, neg, relu, sigmoid, silu, softplus, sqr, sqrt, tanh
from graphrt.ops.view import permute, reshape, transpose, view

__all__ = [
    "add",
    "add_id",
    "argsort",
    "attention",
    "cast",
    "clamp",
    "concat",
    "cont",
    "cpy",
    "div",
    "dup",
    "exp",
    "fill",
    "geglu",
    "gelu",
    "get_rows",
    "mla_attention",
    "mul",
    "mul_mat",
    "mul_mat_id",
    "mul_mat_transposed",
    "neg",
    "permute",
    "reglu",
    "relu",
    "repeat",
    "reshape",
    "rms_norm",
    "rope",
    "scale",
    "set_rows",
    "sigmoid",
    "silu",
    "soft_max",
    "softplus",
    "sqr",
    "sqrt",
    "sub",
    "sum_rows",
    "swiglu",
    "tanh",
    "top_k",
    "transpose",
    "view",
    "weighted_sum",
]
