"""Fusion of a residual's add with the norm that follows it: a row is normalised while it is still in the cache."""

from __future__ import annotations

from graphrt.backends.cpu import host
from graphrt.backends.cpu.elements import kinds
from graphrt.backends.cpu.jit import native
from graphrt.backends.cpu.norm import add_rms_norm
from graphrt.backends.cpu.registry import Call
from graphrt.patterns import Coming, Fused
from graphrt.tensor import Tensor


def add_and_norm(coming: Coming) -> Fused | None:
    """add, whose sum others read too, and the rms_norm of the sum."""
    add = coming.first
    if add.op is None or add.op.name != "add":
        return None
    norm = coming.reader(add, "rms_norm", [add])
    if norm is None or coming.readers.are_within(add, [norm]):
        return None
    over = tuple((norm, src) for src in add.srcs if src is not None)
    return Fused((add, norm), "add and norm", inplace=over, lower=lambda: calls(add, norm))


def calls(add: Tensor, norm: Tensor) -> list[Call]:
    """The call of a pair."""
    tensors = [norm, add, *add.srcs, norm.srcs[1]]
    scalars = [*kinds(tensors), float(norm.params["eps"])]
    return [Call(native(add_rms_norm, host.level().lanes), tensors, scalars, results=2, work=2 * add.size)]
