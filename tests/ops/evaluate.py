"""Short ways to make leafs and to run one node on the reference backend, for the tests of the ops."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import graphrt
from graphrt import GraphError, Tensor, dtypes

NAN, INF = float("nan"), float("inf")


def leaf(values: object, dtype: str = "f32") -> Tensor:
    """A leaf of these numbers, quantized where the dtype is."""
    array = np.asarray(values)
    plain = array.astype(np.int64) if dtypes.get(dtype).is_integer else array.astype(np.float32)
    return graphrt.constant("", dtypes.from_f32(plain, dtypes.get(dtype)))


def state(values: object, dtype: str = "f32") -> Tensor:
    """Writable memory that holds these numbers."""
    source = leaf(values, dtype)
    target = graphrt.state("target", source.shape, dtype)
    assert target.data is not None
    target.data[...] = source.data
    return target


def drawn(*shape: int, dtype: str = "f32", seed: int = 0) -> Tensor:
    """A leaf of normally distributed numbers, the same for each seed."""
    return leaf(np.random.default_rng(seed).standard_normal(shape), dtype)


def run(node: Tensor) -> np.ndarray:
    """The node's result from the reference backend: floats as f32, quantized ones expanded, integers as they are."""
    result = graphrt.Scheduler(["reference"]).plan(node).run()[0]
    return result if dtypes.of(result).is_integer else dtypes.to_f32(result)


def values(x: Tensor) -> np.ndarray:
    """A leaf's numbers as f64, for arithmetic by hand."""
    assert x.data is not None
    return dtypes.to_f32(x.data).astype(np.float64)


def refuses(message: str, build: Callable[[], Tensor]) -> None:
    """Building the node raises a GraphError whose message matches."""
    with pytest.raises(GraphError, match=message):
        build()


def close(got: np.ndarray, expected: object, tolerance: float = 1e-6) -> None:
    """Equal within the tolerance, shapes included."""
    np.testing.assert_allclose(got, np.asarray(expected, np.float32), rtol=tolerance, atol=tolerance, strict=False)
    assert got.shape == np.shape(expected)
