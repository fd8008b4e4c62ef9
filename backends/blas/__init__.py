"""The blas backend: mul_mat of many rows through NumPy's BLAS, on the host's memory.

List it before "cpu" and it takes the products of prompts where it measured faster on this machine, and only those.
Weights that BLAS cannot read are expanded to float32 by the CPU backend's kernels, a tile of some MiB at a time.

Threads: BLAS has its own, as many as OPENBLAS_NUM_THREADS or OMP_NUM_THREADS (MKL_NUM_THREADS) said when NumPy was
loaded; GRAPH_THREADS does not reach them. The CPU backend's threads park while BLAS works; those of OpenBLAS spin long
after a product and slow down what follows, unless OPENBLAS_THREAD_TIMEOUT=14 lets them sleep (docs/benchmarks/blas.md).
"""

from __future__ import annotations

from math import prod

from graphrt import dtypes
from graphrt.backend import YES, Backend, Split, Support
from graphrt.backend import create as create_backend
from graphrt.backends.blas.crossover import Crossover
from graphrt.backends.blas.program import BlasProgram, Product, is_readable, tile_bytes
from graphrt.settings import Settings
from graphrt.tensor import Tensor

__all__ = ["BlasBackend", "create"]

LEAST_BATCH = 32  # below this no BLAS catches up with the expansion of its weights, so nothing is measured


class BlasBackend(Backend):
    """Runs mul_mat through NumPy's BLAS.

    Args:
        settings: of the CPU backend that expands weights, and with which the measurement compares.
        min_batch: rows from which on products are taken, whatever the dtype; measured on this machine where None.
    """

    name = "blas"

    def __init__(self, settings: Settings | None = None, *, min_batch: int | None = None) -> None:
        settings = settings or Settings.from_env()
        self._expander = create_backend("cpu", settings)
        self._min_batch = min_batch
        self._crossover = Crossover(settings, lambda: BlasBackend(settings, min_batch=0))

    def supports(self, node: Tensor) -> Support:
        if node.op is None or node.op.name != "mul_mat":
            return Support(False, "blas multiplies by one matrix (mul_mat) and does nothing else")
        w, x = node.srcs
        if w is None or x is None or x.dtype is not dtypes.f32:
            return Support(False, "blas takes rows of f32 only", "cast them with ops.cast")
        if prod(w.shape[:-2]) != 1:
            return Support(False, f"blas multiplies by one matrix, not by a batch of {prod(w.shape[:-2])}")
        if w.dtype.rows > 1:
            return Support(False, f"the rows of {w!r} are interleaved for the cpu", "load it without --repack")
        if not w.has_dense_rows and w.dtype is not dtypes.f32:
            return Support(False, f"blas needs dense rows of a weight in {w.dtype}", "wrap it in ops.cont")
        return self._pays(w, rows=node.size // max(1, node.shape[-1]))

    def workspace(self, node: Tensor) -> int:
        w = node.srcs[0]
        return 0 if w is None or is_readable(w) else tile_bytes(w)

    def compile(self, split: Split) -> BlasProgram:
        return BlasProgram([Product.of(node, split, self._expander) for node in split.nodes])

    def _pays(self, w: Tensor, rows: int) -> Support:
        if self._min_batch is not None:
            least: int | None = self._min_batch
        else:
            least = LEAST_BATCH if rows < LEAST_BATCH else self._crossover.least_batch(w.dtype)
        if least is None:
            return Support(False, f"the CPU kernels measured faster with weights in {w.dtype} at every batch")
        if rows < least:
            return Support(False, f"batch {rows} < {least}, from where on blas is faster than the CPU kernels")
        return YES if self._min_batch is not None else Support(True, f"blas measured faster from batch {least} on")


def create(settings: Settings) -> BlasBackend:
    """Make the blas backend; it takes a product where it measured faster than the CPU backend of these settings."""
    return BlasBackend(settings)
