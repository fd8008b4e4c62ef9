"""Products through BLAS beside the CPU kernels: `python -m docs.benchmarks.blas --threads 2`, from the project's root.

Prints a table for one number of threads, which BLAS and the CPU backend both get. It is the comparison with which the
blas backend decides (backends/blas/rounds.py), but of all batches, and to the last round where BLAS loses.
"""

from __future__ import annotations

import argparse
import os
from math import inf

DTYPES = ("f32", "f16", "bf16", "q4_0", "q8_0", "q4_k", "q6_k")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1, help="of BLAS and of the CPU backend")
    threads = parser.parse_args().threads
    os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = str(threads)  # before NumPy reads them
    print_table(threads)


def print_table(threads: int) -> None:
    """A row for each dtype, a column for each batch: milliseconds by the CPU kernels, through BLAS, the ratio."""
    from graphrt import Settings, dtypes
    from graphrt.backends.blas import BlasBackend
    from graphrt.backends.blas.crossover import BATCHES, Crossover
    from graphrt.backends.blas.rounds import ROUNDS, blas_pays, fastest

    settings = Settings.from_env(threads=threads)
    crossover = Crossover(settings, lambda: BlasBackend(settings, min_batch=0))
    taken = []
    print("| weights |", " | ".join(f"batch {batch}" for batch in BATCHES), "|")
    print("|---|", "---|" * len(BATCHES), sep="")
    for name in DTYPES:
        cells = [name]
        for batch in BATCHES:
            rounds = crossover.rounds(dtypes.get(name), batch, inf, losses=ROUNDS)
            best = fastest(rounds)
            kernels = best.kernels / 2 * 1e3
            cells.append(f"{kernels:.1f}, {best.ratio * kernels:.1f} ms, {best.ratio:.2f}")
            if blas_pays(rounds):
                taken.append(f"{name} at {batch}")
        print("|", " | ".join(cells), "|", flush=True)
    print("\nBLAS takes:", ", ".join(taken) or "nothing")


if __name__ == "__main__":
    main()
