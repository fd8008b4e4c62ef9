"""cuBLAS, through its C interface: products of bf16 matrices in any stream, in memory that is given for them.

CuPy finds and loads the library. Its own gemmEx does not serve here: it refuses to work in a capture, and has no
workspace given, so that cuBLAS takes memory of its own.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from typing import Any

import numpy as np

from graphrt import dtypes
from graphrt.backends.cuda.device import Device
from graphrt.backends.cuda.launch import SCRATCH, BoundGemm, Gemm, Workspace
from graphrt.errors import KernelError

# As cublas_api.h and library_types.h number them.
PLAIN, TRANSPOSED = 0, 1
BF16, F32 = 14, 0
SUMS_IN_F32, ANY_ALGORITHM = 68, -1


def load() -> tuple[Any, Any]:
    """CuPy's module for cuBLAS, and the library itself.

    Raises: ImportError, OSError or AttributeError if there is none, or not all of it.
    """
    from cupy_backends.cuda.libs import cublas

    library = ctypes.CDLL(cublas.__file__)  # finds what the library exports, since the module depends on it
    whole, pointer = ctypes.c_int, ctypes.c_void_p
    library.cublasSetStream_v2.argtypes = [pointer, pointer]
    library.cublasSetWorkspace_v2.argtypes = [pointer, pointer, ctypes.c_size_t]
    operand = [pointer, whole, whole]
    sizes = [whole] * 5
    library.cublasGemmEx.argtypes = [pointer, *sizes, pointer, *operand, *operand, pointer, *operand, whole, whole]
    library.cublasGetStatusName.argtypes = [whole]
    library.cublasGetStatusName.restype = ctypes.c_char_p
    return cublas, library


class Cublas:
    """The library on the current device.

    Raises: what `load` raises; RuntimeError with cuBLAS's word if it cannot work here.
    """

    def __init__(self) -> None:
        binding, self._library = load()
        self._handle = binding.create()
        weakref.finalize(self, binding.destroy, self._handle).atexit = False  # the driver may be gone by then
        self._one, self._zero = ctypes.c_float(1), ctypes.c_float(0)
        self._lock = threading.Lock()  # a handle is one thread's at a time

    def multiply(self, bound: BoundGemm, stream: int) -> None:
        """Begin a product in the stream of that address.

        Raises: KernelError with cuBLAS's word.
        """
        each = bound.product
        one, zero = ctypes.addressof(self._one), ctypes.addressof(self._zero)
        # Matrices of cuBLAS lie column by column: our rows of w, x and y are its columns, so that y's shape is turned
        # round for it, as it should be, and w is the one to be transposed.
        sizes = TRANSPOSED, PLAIN, each.rows, each.columns, each.width
        w, x, y = (bound.w, BF16, each.w_step), (bound.x, BF16, each.x_step), (bound.y, F32, each.y_step)
        with self._lock:
            self._check(self._library.cublasSetStream_v2(self._handle, stream), each)  # and forget the workspace
            self._check(self._library.cublasSetWorkspace_v2(self._handle, bound.scratch, SCRATCH), each)
            given = *sizes, one, *w, *x, zero, *y, SUMS_IN_F32, ANY_ALGORITHM
            self._check(self._library.cublasGemmEx(self._handle, *given), each)

    def _check(self, status: int, product: Gemm) -> None:
        if status:
            answer = self._library.cublasGetStatusName(status).decode()
            raise KernelError(f"[cuda] cuBLAS answers {answer} to {product}")


def try_out(cublas: Cublas, device: Device, stream: int) -> None:
    """Make a first small product, so that cuBLAS sets up now, and not in a capture, what it sets up at its first use.

    Args:
        stream: address of the device's own stream.

    Raises: KernelError if the product is wrong, or with what failed.
    """
    w, x = (np.arange(count * 32, dtype=np.float32).reshape(count, 32) % prime for count, prime in ((24, 7), (16, 11)))
    y = np.empty((16, 24), np.float32)
    address, memory = device.allocate(SCRATCH + 8192)
    w_at, x_at, y_at = (address + SCRATCH + place for place in (0, 2048, 4096))
    for place, values in ((w_at, w), (x_at, x)):
        device.upload(place, dtypes.from_f32(values, dtypes.bf16))
    nowhere = Workspace()
    product = Gemm(nowhere, nowhere, nowhere, nowhere, rows=24, columns=16, width=32, y_step=24, w_step=32, x_step=32)
    cublas.multiply(BoundGemm(product, y_at, w_at, x_at, address), stream)
    device.download(y_at, y)
    device.synchronize()
    del memory
    if not np.array_equal(y, x @ w.T):
        raise KernelError("[cuda] cuBLAS's first product is wrong")
