"""A stand-in for cuBLAS, for late_cupy.py: products as its documentation has them, of matrices column by column."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np

NOT_ALLOCATED, INVALID = 3, 7
BF16, F32, SUMS_IN_F32 = 14, 0, 68


class LateCublas:
    """The library of one GPU.

    Args:
        streams: by address.
        status: with which products in a capture are answered, 0 if they succeed; None: there is no library.
    """

    def __init__(self, streams: dict[int, Any], status: int | None) -> None:
        self._streams, self._status = streams, status
        self._stream: Any = None
        self._workspace: tuple[int, int] | None = None
        self.products = 0

    def load(self) -> tuple[SimpleNamespace, SimpleNamespace]:
        """CuPy's module, and the library."""
        if self._status is None:
            raise ImportError("libcublas.so.12 is not there\nnor anywhere else")
        binding = SimpleNamespace(create=lambda: 1, destroy=lambda handle: None)
        library = SimpleNamespace(
            cublasSetStream_v2=self._set_stream,
            cublasSetWorkspace_v2=self._set_workspace,
            cublasGemmEx=self._multiply,
            cublasGetStatusName=lambda status: f"CUBLAS_STATUS_{status}".encode(),
        )
        return binding, library

    def _set_stream(self, handle: int, stream: int) -> int:
        self._stream, self._workspace = self._streams[stream], None
        return 0

    def _set_workspace(self, handle: int, address: int, nbytes: int) -> int:
        self._workspace = address, nbytes
        return INVALID if address % 256 else 0

    def _multiply(
        self, handle: int, across_a: int, across_b: int, m: int, n: int, k: int, alpha: int, *given: int
    ) -> int:
        """c [m, n] = alpha · op(a) [m, k] · op(b) [k, n] + beta · c, where op transposes or does nothing."""
        a, a_dtype, a_step, b, b_dtype, b_step, beta, c, c_dtype, c_step, compute, algorithm = given
        if (a_dtype, b_dtype, c_dtype, compute, algorithm) != (BF16, BF16, F32, SUMS_IN_F32, -1):
            return INVALID
        if a_step < (k if across_a else m) or b_step < (n if across_b else k) or c_step < m:
            return INVALID
        if self._workspace is None:  # it would be taken now, which a capture does not allow
            return NOT_ALLOCATED
        if self._stream.captured is not None and self._status:
            return self._status
        workspace, factors = self._workspace, [ctypes.c_float.from_address(each).value for each in (alpha, beta)]
        self.products += 1

        def run() -> None:
            ctypes.memset(workspace[0], 0xFF, workspace[1])
            left = _columns(a, k, m, a_step, np.uint16).T if across_a else _columns(a, m, k, a_step, np.uint16)
            right = _columns(b, n, k, b_step, np.uint16).T if across_b else _columns(b, k, n, b_step, np.uint16)
            result = _columns(c, m, n, c_step, np.float32)
            product = factors[0] * (_as_floats(left) @ _as_floats(right))
            result[...] = product + factors[1] * result if factors[1] else product

        self._stream.begin(run)
        return 0


def _columns(address: int, height: int, count: int, step: int, dtype: type[np.generic]) -> np.ndarray:
    """A matrix [height, count] whose columns lie one after the other, `step` elements apart."""
    size = np.dtype(dtype).itemsize
    memory = (ctypes.c_uint8 * (((count - 1) * step + height) * size)).from_address(address)
    return np.ndarray((height, count), dtype, memory, strides=(size, step * size))


def _as_floats(codes: np.ndarray) -> np.ndarray:
    return (codes.astype(np.uint32) << 16).view(np.float32)
