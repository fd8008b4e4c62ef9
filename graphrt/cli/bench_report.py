"""Results of `graphrt bench` as llama-bench writes them: a Markdown table, JSON, or CSV with the same field names."""

from __future__ import annotations

import csv
import io
import json
import statistics
from dataclasses import asdict, dataclass

from graphrt.cli import output

NANOSECONDS = 1e9


@dataclass(frozen=True)
class BenchTest:
    """What is timed: a prompt of `n_prompt` tokens, then `n_gen` tokens one by one, after `n_depth` untimed ones."""

    n_prompt: int
    n_gen: int
    n_depth: int = 0

    @property
    def name(self) -> str:
        """llama-bench's name: pp512, tg128, pp512+tg128 @ d1024."""
        parts = [f"pp{self.n_prompt}"] if self.n_prompt else []
        parts += [f"tg{self.n_gen}"] if self.n_gen else []
        return "+".join(parts) + (f" @ d{self.n_depth}" if self.n_depth else "")


@dataclass(frozen=True)
class BenchResult:
    """One test's times on one model, in llama-bench's field names; sizes in bytes."""

    model_filename: str
    model_type: str
    model_size: int
    model_n_params: int
    backends: str
    cpu_info: str
    n_threads: int
    type_k: str
    type_v: str
    n_prompt: int
    n_gen: int
    n_depth: int
    test_time: str
    samples_ns: list[int]

    @property
    def samples_ts(self) -> list[float]:
        """Tokens per second of each repetition."""
        return [NANOSECONDS * (self.n_prompt + self.n_gen) / sample for sample in self.samples_ns]

    def fields(self) -> dict[str, object]:
        """All fields, the averages and the samples last."""
        known = asdict(self)
        samples_ns, samples_ts = known.pop("samples_ns"), self.samples_ts
        averages = {
            "avg_ns": round(statistics.fmean(samples_ns)),
            "stddev_ns": round(_deviation(samples_ns)),
            "avg_ts": statistics.fmean(samples_ts),
            "stddev_ts": _deviation(samples_ts),
        }
        return {**known, **averages, "samples_ns": samples_ns, "samples_ts": samples_ts}


def as_json(results: list[BenchResult]) -> str:
    """A JSON array of objects."""
    return json.dumps([result.fields() for result in results], indent=2)


def as_csv(results: list[BenchResult]) -> str:
    """A header and a line a result; the samples are left out, as llama-bench does."""
    rows = [{key: value for key, value in result.fields().items() if "samples" not in key} for result in results]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip("\n")


def as_markdown(results: list[BenchResult]) -> str:
    """llama-bench's table."""
    header = ["model", "size", "params", "backend", "threads", "test", "t/s"]
    rows = [_markdown_row(result) for result in results]
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    rule = ["-" * width if column in (0, 3) else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    aligned = [
        [
            cell.ljust(width) if column in (0, 3) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in [header, rule, *rows]
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in aligned)


def _markdown_row(result: BenchResult) -> list[str]:
    return [
        result.model_type,
        output.size(result.model_size),
        _parameters(result.model_n_params),
        result.backends,
        str(result.n_threads),
        BenchTest(result.n_prompt, result.n_gen, result.n_depth).name,
        f"{statistics.fmean(result.samples_ts):.2f} ± {_deviation(result.samples_ts):.2f}",
    ]


def _parameters(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"


def _deviation(samples: list[int] | list[float]) -> float:
    """Sample standard deviation; 0 of a single sample."""
    return statistics.stdev(samples) if len(samples) > 1 else 0.0
