"""Speed beside llama.cpp's on the same files, with the same threads, all taking turns; and how far the logits differ.

    python -m tests.peers.bench_llama_cpp          # the models and types of docs/benchmarks/cpu.md
    python -m tests.peers.bench_llama_cpp --model V2-Lite --type q8_0 --rounds 3

llama.cpp runs twice, with flash attention and without: the faster way counts. Both sides compute the logits of a
prompt's last token only, and so that of the last layer's feed-forward part. Decoding takes turns every eight tokens.
Medians count. Results are kept in docs/benchmarks/cpu_peers.json. It fails where the logits of a file differ too much.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import zip_longest
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from docs.benchmarks.cpu_models import SUBJECTS, TYPES
from docs.benchmarks.cpu_report import write_page
from docs.benchmarks.cpu_run import PART, Session, Trial, longest
from docs.benchmarks.cpu_targets import DECODE, PROMPT, PROMPT_RATIOS, point
from graphrt.models.batch import Batch
from graphrt.testing import normalised_error
from tests.peers import llama_cpp_peer
from tests.peers.llama_cpp_peer import Peer

FOLDER = Path(__file__).parents[2] / "docs" / "benchmarks"
RESULTS = FOLDER / "cpu_peers.json"
OURS, WAYS = "graphrt", {"llama.cpp": False, "llama.cpp, flash attention": True}
TESTS = (PROMPT, DECODE)
TOKENS = 64  # whose logits are compared
# Of the median error. Random weights leave routers undecided, so that rounding activations to 8 bits often changes an
# expert: against the same values in f32, llama.cpp itself is off by 3.5e-3 in V2-Lite's q8_0 file, graphrt by 2.6e-3.
BOUND, PLAIN_BOUND = 2e-2, 2e-3


def main() -> None:
    options = parse()
    results: dict[str, Any] = {"models": {}, "errors": {}}
    if options.record.exists() and not options.fresh:
        results = json.loads(options.record.read_text())
    results |= {"threads": options.threads, "rounds": options.rounds, "tokens": TOKENS}
    print(f"{options.threads} threads, medians of {options.rounds} rounds, tokens/s")
    print(f"{'':24}{OURS:>10}{''.join(f'{name:>28}' for name in WAYS)}{'ratio':>8}{'wanted':>8}")
    with tempfile.TemporaryDirectory(prefix="graphrt-benchmarks-") as temporary:
        for subject in SUBJECTS:
            for file_type in TYPES:
                if subject.name in options.model and file_type in options.type:
                    path = subject.file(file_type, options.folder or Path(temporary))
                    compare(subject.name, file_type, path, results, options)
                    gc.collect()  # before the next file: two may not fit into memory
                    options.record.write_text(json.dumps(results, indent=1) + "\n")
                    if options.folder is None:
                        path.unlink()
    if options.record == RESULTS and (FOLDER / "cpu.json").exists():
        write_page(FOLDER)
    far = {name: error for name, error in results["errors"].items() if not error <= bound_of(name)}
    if far:
        sys.exit(f"logits differ too much from llama.cpp's: {far}")


def compare(subject: str, file_type: str, path: Path, results: dict[str, Any], options: argparse.Namespace) -> None:
    """Time every test of a file by all sides, and compare their logits; a line a test."""
    tests = [Trial.of(name) for name in options.test]
    session = Session(path, max(TOKENS, longest(tests)), options.threads)
    with ExitStack() as opened:
        size = session.context.size
        peers = {
            name: opened.enter_context(llama_cpp_peer.opened(path, n_ctx=size, threads=options.threads, flash=flash))
            for name, flash in WAYS.items()
        }
        for test in tests:
            sides: dict[str, Callable[[], Iterator[float]]] = {OURS: lambda test=test: session.parts(test)}
            sides |= {
                name: lambda peer=peer, test=test: parts_of_llama_cpp(peer, session.tokens, test)
                for name, peer in peers.items()
            }
            key = point(subject, file_type, test.name)
            results["models"][key] = found = judged(measure(sides, test, options.rounds), subject, file_type, test)
            cells = "".join(f"{found['speeds'][name]:28.1f}" for name in WAYS)
            wanted = "" if found["wanted"] is None else f"{found['wanted']:8.1f}"
            print(f"{key:24}{found[OURS]:10.1f}{cells}{found['ratio']:8.2f}{wanted}", flush=True)
        results["errors"][f"{subject} {file_type}"] = error = error_of_logits(session, peers["llama.cpp"])
        print(f"{f'{subject} {file_type}':24}error of logits {error:.1e}", flush=True)


def measure(sides: Mapping[str, Callable[[], Iterator[float]]], test: Trial, rounds: int) -> dict[str, float]:
    """Median tokens a second of each side; the round before the first compiles and warms up."""
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        turns = zip_longest(*(parts() for parts in sides.values()), fillvalue=0.0)
        for name, seconds in zip(sides, map(sum, zip(*turns, strict=True)), strict=True):
            if number:
                speeds[name].append((test.prompt + test.decode) / seconds)
    return {name: round(median(each), 2) for name, each in speeds.items()}


def judged(speeds: dict[str, float], subject: str, file_type: str, test: Trial) -> dict[str, Any]:
    """Ours beside the faster way of llama.cpp."""
    theirs = max(speeds[name] for name in WAYS)
    wanted = {PROMPT: PROMPT_RATIOS[subject][file_type], DECODE: 1.0}.get(test.name)
    ratio = round(speeds[OURS] / theirs, 3)
    return {OURS: speeds[OURS], "llama.cpp": theirs, "ratio": ratio, "wanted": wanted, "speeds": speeds}


def parts_of_llama_cpp(peer: Peer, tokens: Sequence[int], test: Trial) -> Iterator[float]:
    """Seconds of the test's parts, as `Session.parts` has them."""
    peer.clear()
    if test.depth:
        peer.feed(tokens[: test.depth])
    if test.prompt:
        start = time.perf_counter()
        peer.feed(tokens[test.depth : test.depth + test.prompt])
        yield time.perf_counter() - start
    for first in range(test.length - test.decode, test.length, PART):
        start = time.perf_counter()
        for token in tokens[first : min(first + PART, test.length)]:
            peer.feed([token])
        yield time.perf_counter() - start


def error_of_logits(session: Session, peer: Peer) -> float:
    """Median over the tokens of a prompt, all in one go, of the normalised error of the two sides' logits."""
    tokens = session.tokens[:TOKENS]
    session.context.clear()
    ours = session.context.decode(Batch.of(tokens, all_logits=True))
    errors = [normalised_error(a, b) for a, b in zip(ours, peer.logits(tokens), strict=True)]
    return float(np.median(errors))


def bound_of(file: str) -> float:
    """The error that a file may have, by its name: less where activations are not rounded to 8 bits."""
    return PLAIN_BOUND if file.endswith("bf16") else BOUND


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=[each.name for each in SUBJECTS], action="append", help="repeatable")
    parser.add_argument("--type", choices=TYPES, action="append", help="repeatable")
    parser.add_argument("--test", action="append", help=f"pp512, tg64 @ d4096 …, repeatable; else {', '.join(TESTS)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--folder", type=Path, help="keep the models there: 20 GB; else each goes after its turn")
    parser.add_argument("--record", type=Path, default=RESULTS, help="where the results are kept")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    options = parser.parse_args()
    options.model = options.model or [each.name for each in SUBJECTS]
    options.type, options.test = options.type or TYPES, options.test or TESTS
    return options


if __name__ == "__main__":
    main()
