"""Which layer of a model a tensor belongs to, as its name tells, or those of what it is made from."""

from __future__ import annotations

import re
from collections.abc import Iterable

from graphrt.tensor import Tensor

# "blk.3.ffn_up.weight" (a weight of layer 3) and "ffn_out-3" (a node of layer 3)
_LAYER = re.compile(r"(?:^|\.)blk\.(\d+)\.|-(\d+)(?:$|[ .(])")


def layers_of(tensors: Iterable[Tensor]) -> dict[Tensor, int | None]:
    """The layer of each tensor, given in execution order; None for those outside every layer.

    A node that nobody named belongs to the last layer among its sources.
    """
    layers: dict[Tensor, int | None] = {}
    for tensor in tensors:
        match = _LAYER.search(tensor.name)
        if match:
            layers[tensor] = int(match[1] or match[2])
        elif tensor.op is not None and re.fullmatch(rf"{re.escape(tensor.op.name)}_\d+", tensor.name):
            found = [layers.get(src) for src in tensor.srcs if src is not None]
            layers[tensor] = max((layer for layer in found if layer is not None), default=None)
        else:
            layers[tensor] = None
    return layers
