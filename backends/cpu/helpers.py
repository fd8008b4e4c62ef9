"""The decorator of functions that kernels call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def helper(function: Callable[..., Any]) -> Any:
    """A function that kernels may call; it is compiled with them and usually inlined."""
    return njit(function, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
