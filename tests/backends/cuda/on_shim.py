"""Running graphs on the cuda backend through the shim, and on the reference, for the tests of its kernels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

import graphrt
from graphrt import Tensor, dtypes
from graphrt.backends.cuda import CudaBackend
from graphrt.backends.cuda.shim_device import ShimDevice
from graphrt.numerics import normalised_error


def on_cuda(*nodes: Tensor, order: int = 7) -> list[np.ndarray]:
    """The nodes' results, all computed on the device; buffers are guarded, new memory is NaN, and UBSan watches."""
    backend = CudaBackend(ShimDevice(order=order, guarded=True, poisoned=True, checked=True))
    return results(backend, nodes)


def on_reference(*nodes: Tensor) -> list[np.ndarray]:
    """The nodes' results by NumPy."""
    return results("reference", nodes)


def agrees(node: Tensor) -> None:
    """The node's result on the device is the reference's, within its op's tolerance."""
    assert node.op is not None
    (got,), (expected,) = on_cuda(node), on_reference(node)
    assert normalised_error(got, expected) <= node.op.tolerance_of(node)


def leaf(values: object, dtype: str = "f32") -> Tensor:
    """A leaf of these numbers."""
    array = np.asarray(values)
    plain = array if dtypes.get(dtype).is_integer else array.astype(np.float32)
    made = graphrt.constant if dtypes.get(dtype).is_integer else graphrt.weight
    return made("", dtypes.from_f32(plain, dtypes.get(dtype)))


def drawn(*shape: int, dtype: str = "f32", seed: int = 0) -> Tensor:
    """A leaf of normally distributed numbers, the same for each seed."""
    return leaf(np.random.default_rng(seed).standard_normal(shape), dtype)


def results(backend: CudaBackend | str, nodes: Sequence[Tensor]) -> list[np.ndarray]:
    """The nodes' results with all of the graph on one backend; states are left as they were."""
    graph = graphrt.Graph(list(nodes))
    scheduler = graphrt.Scheduler([backend])
    states = [(each, each.data.copy()) for each in graph.leafs if each.role == "state" and each.data is not None]
    weights = [each for each in graph.leafs if each.role == "weight"]  # in buffers of their own, which can be guarded
    everything = [*weights, *(each for node in graph.nodes for each in (node, node.root))]
    plan = scheduler.plan(graph, assigned=dict.fromkeys(everything, scheduler.backends[0].name))
    found = [result.copy() for result in plan.run()]
    for each, before in states:
        each.data[...] = before
    return found
