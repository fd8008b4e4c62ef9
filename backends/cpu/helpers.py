"""The decorator of functions that kernels call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def helper(function: Callable[..., Any]) -> Any:
    """A function that kernels may call: Numba copies its body into each caller.

    Copying, rather than calling, lets constants reach the intrinsics inside, and emits each kernel's copy for that
    kernel's SIMD level.
    """
    return njit(function, inline="always")
