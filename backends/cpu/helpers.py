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


def procedure(function: Callable[..., Any]) -> Any:
    """A function that kernels may call and that stays one: for long bodies, whose copies would take long to compile.

    Define it inside a factory if its code depends on the SIMD level, so that it is compiled anew for each.
    """
    return njit(function, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
