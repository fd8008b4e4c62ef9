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
    """Milliseconds of a product both ways, the ratio, and the rounds that BLAS won."""
    from graphrt import Settings, dtypes
    from graphrt.backends.blas import BlasBackend
    from graphrt.backends.blas.crossover import BATCHES, Crossover
    from graphrt.backends.blas.rounds import MARGIN, ROUNDS, blas_pays, fastest

    settings = Settings.from_env(threads=threads)
    crossover = Crossover(settings, lambda: BlasBackend(settings, min_batch=0))
    print("| weights | batch | CPU kernels | BLAS | ratio | rounds won | taken |")
    print("|---|---:|---:|---:|---:|---:|---|")
    for name in DTYPES:
        for batch in BATCHES:
            rounds = crossover.rounds(dtypes.get(name), batch, inf, losses=ROUNDS)
            best = fastest(rounds)
            kernels = best.kernels / 2 * 1e3
            won = f"{sum(each.ratio < MARGIN for each in rounds)} of {len(rounds)}"
            times = (f"{kernels:.1f} ms", f"{best.ratio * kernels:.1f} ms", f"{best.ratio:.2f}")
            cells = (name, batch, *times, won, "yes" if blas_pays(rounds) else "no")
            print("|", " | ".join(map(str, cells)), "|", flush=True)


if __name__ == "__main__":
    main()
