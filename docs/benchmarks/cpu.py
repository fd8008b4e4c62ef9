"""Speed of whole models on the CPU beside the machine's limits: `python -m docs.benchmarks.cpu`, in the project's root.

    --quick     prompts of 512 and 64 decoded tokens only, three rounds: minutes
    --long      the longest prompts and depths for every type, not q8_0 only
    --check     measure the quick set, compare its shares of the limits with those recorded, and fail where one fell
    --page      write the page and the plots of what is recorded, without measuring

Models are synthesised, one file at a time. Results are kept in cpu.json, so that a run that was stopped goes on, and
shown in cpu.md, cpu_shares.png and cpu_context.png.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import graphrt
from docs.benchmarks.cpu_kernels import kernels
from docs.benchmarks.cpu_limits import KINDS, Limits
from docs.benchmarks.cpu_models import SUBJECTS, TYPES, Subject
from docs.benchmarks.cpu_report import write_page
from docs.benchmarks.cpu_run import Session, Trial, longest, measure
from docs.benchmarks.cpu_targets import fallen, point
from graphrt.cli.bench import cpu_info

RESULTS = Path(__file__).with_suffix(".json")
QUICK = ("pp512", "tg64")
USUAL = ("pp4", "pp16", "pp128", "pp512", "pp2048", "tg64", "tg64 @ d4096")
LONG = ("pp8192", "tg64 @ d16384")
LONG_TYPE = "q8_0"  # that long tests are made of without --long
ROUNDS, QUICK_ROUNDS = 5, 3
TOLERANCE = 0.15


class Record:
    """Results that are written to a file as they come in; without a file they are only held."""

    def __init__(self, path: Path | None, fresh: bool) -> None:
        self.path = path
        known = path is not None and path.exists() and not fresh
        self.all: dict[str, Any] = json.loads(path.read_text()) if path and known else {}
        self.models: dict[str, Any] = self.all.setdefault("models", {})

    def save(self) -> None:
        if self.path is not None:
            self.path.write_text(json.dumps(self.all, indent=1) + "\n")


class Benchmark:
    """Measures what the record has not, file by file.

    Args:
        record: what is known.
        options: of the command line.
    """

    def __init__(self, record: Record, options: argparse.Namespace) -> None:
        threads = graphrt.Settings.from_env(threads=options.threads).thread_count
        self.record, self.options, self.limits = record, options, Limits(threads)
        record.all["machine"] = {"threads": threads, "processor": cpu_info(), "commit": commit()}

    def run(self) -> None:
        options = self.options
        self._note_limits()
        print(f"{self.limits.size} threads; limits in billions a second: {self.record.all['limits'][-1]}", flush=True)
        with tempfile.TemporaryDirectory(prefix="graphrt-benchmarks-") as temporary:
            for subject, file_type, tests in selected(options):
                missing = {point(subject.name, file_type, test.name): test for test in tests}
                missing = {name: test for name, test in missing.items() if name not in self.record.models}
                if missing:
                    path = subject.file(file_type, options.folder or Path(temporary))
                    self._measure_file(path, missing)
                    self._note_limits()
                    if options.folder is None:
                        path.unlink()
        is_part = options.quick or options.check or options.model or options.type or options.test
        if not is_part and "kernels" not in self.record.all:
            self.record.all["kernels"] = kernels(self.limits)
            self.record.save()

    def _measure_file(self, path: Path, tests: Mapping[str, Trial]) -> None:
        session = Session(path, longest(tests.values()), self.limits.size)
        for name, test in sorted(tests.items(), key=lambda item: item[1]):
            self.record.models[name] = found = measure(session, test, self.limits, self.options.rounds)
            self.record.save()
            speed, share = median(found["tokens_per_second"]), median(found["share"])
            print(f"{name:28} {speed:8.1f} tokens/s, {share:5.1%} of {found['limits']}", flush=True)
        del session
        gc.collect()  # before the next file: two may not fit into memory

    def _note_limits(self) -> None:
        """Keep what the machine can do at the moment, and how many processes want to run on it."""
        rates = {kind: round(rate / 1e9, 1) for kind, rate in self.limits.measure(KINDS).items()}
        self.record.all.setdefault("limits", []).append(rates | {"load": round(os.getloadavg()[0], 1)})
        self.record.save()


def main() -> None:
    options = parse()
    if not options.page:
        record = Record(None if options.check else options.record, options.fresh)
        Benchmark(record, options).run()
        if options.check:
            check(record, json.loads(options.record.read_text()), options.tolerance)
            return
    if options.record == RESULTS:
        write_page(RESULTS.parent)


def selected(options: argparse.Namespace) -> Iterator[tuple[Subject, str, list[Trial]]]:
    for subject in SUBJECTS:
        for file_type in TYPES:
            if subject.name in (options.model or [subject.name]) and file_type in (options.type or TYPES):
                if options.test:
                    names = tuple(options.test)
                elif options.quick or options.check:
                    names = QUICK
                else:
                    names = USUAL + LONG * (options.long or file_type == LONG_TYPE)
                yield subject, file_type, [Trial.of(name) for name in names]


def check(record: Record, recorded: dict[str, Any], tolerance: float) -> None:
    """Say what fell; the process then ends with 1."""
    lines = fallen(record.models, recorded["models"], tolerance)
    compared = len(record.models.keys() & recorded["models"].keys())
    print(f"{compared} shares compared with those recorded; {len(lines)} fell by more than {tolerance:.0%}")
    for line in lines:
        print(f"  {line}")
    if lines or not compared:
        sys.exit(1)


def commit() -> str:
    """The commit that is measured, where git tells it."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, cwd=RESULTS.parent, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--page", action="store_true")
    parser.add_argument(
        "--tolerance", type=float, default=TOLERANCE, help="of --check, 0.15: a share may fall by 15 %%"
    )
    parser.add_argument("--model", choices=[each.name for each in SUBJECTS], action="append", help="repeatable")
    parser.add_argument("--type", choices=TYPES, action="append", help="repeatable")
    parser.add_argument("--test", action="append", help="pp512, tg64, tg64 @ d4096 …, repeatable")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU backend; 0: all processors")
    parser.add_argument("--rounds", type=int, default=0, help="that count, of each test")
    parser.add_argument(
        "--folder", type=Path, help="keeps the models there, 20 GB; else each is deleted after its turn"
    )
    parser.add_argument("--record", type=Path, default=RESULTS, help="where the results are kept")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    options = parser.parse_args()
    options.rounds = options.rounds or (QUICK_ROUNDS if options.quick or options.check else ROUNDS)
    return options


if __name__ == "__main__":
    main()
