"""The page of the CPU's speed: tables of cpu.json, of what was measured before the work on it, and beside llama.cpp."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from docs.benchmarks.cpu_models import SUBJECTS, TYPES, VOCABULARY, Subject
from docs.benchmarks.cpu_plots import plot
from docs.benchmarks.cpu_run import Trial
from docs.benchmarks.cpu_targets import Results, Target, point, targets
from docs.benchmarks.model_work import weight_bytes
from graphrt.models.synth import describe

Row = Sequence[str]

PAGE = """# Speed on the CPU

{machine}. Models with random weights: DeepSeek-V2-Lite cut to 4 layers (one dense, three of experts) and Mixtral-8x7B
cut to 2, both with a vocabulary of 4096, in the file types of llama-quantize. `ppN` is a prompt of N tokens in ubatches
of 512, `tg64` is 64 tokens one by one, `@ dN` is after N others; the cache is f16, the weights are read into memory
and interleaved there (`--repack`). Medians of {rounds} rounds.{before}

A share is the least time that the machine could take over the time taken. For decoding that is the bytes of the active
weights, and of the cache at a depth, over the speed of only reading memory; for prompts the operations of the active
weights over the speed of multiplying registers, in int8 for quantized types and in bf16 for bf16, or, if that takes
longer, reading the weights of all experts that so many tokens use. Of the last layer's feed-forward part and the output
only the last token counts, of its attention only the last ubatch and what goes to the cache, since nothing else is
computed; attention's own products are left out. Limits move on a machine that others use too, the bandwidth by half
within a second: they are measured right before every prompt, and while decoding before and after every eight tokens,
of whose shares the median counts.

{limits}. {load}

`python -m docs.benchmarks.cpu --fresh` measures all of it again, `--quick` in minutes a part; `--check` measures that
part, and fails where a share fell by more than 15 % of what is recorded here.

## Targets

{verdicts}

{targets}

![Shares of the limits of decoding and of prompts, by model and type](cpu_shares.png)

## Decoding

{decode}

## Prompts

{prompts}

![Speed over the length of the prompt and over the depth of the context](cpu_context.png)

## Beside llama.cpp

{peers}

## Kernels alone

{kernels}
"""

PEERS = """Both take the same files, which llama.cpp maps, with {threads} threads and an f16 cache, and take turns,
every eight tokens where they decode: medians of {rounds} rounds, tokens a second. llama.cpp is the faster of its ways,
with flash attention and without. Of the last layer's feed-forward part and of the output both compute the last token's
only. Error: mean squared difference of the two sides' logits over their mean square, the median of {tokens} tokens;
both round activations, and random weights leave routers undecided. Against the same values in f32 llama.cpp is off by
3.5e-3 in V2-Lite's q8_0 file, graphrt by 2.6e-3.
`python -m tests.peers.bench_llama_cpp` measures again.
"""
PEERS_PLOT = ("", "![Speed over llama.cpp's, of decoding and of prompts](cpu_peers.png)")
PRODUCTS = """Products of 2816 rows of 2048 with one column, as a share of the bandwidth, and with 512, as a share of
the arithmetic peak of the kind; the best of several runs.
"""
ATTENTION = """Attention of one token to 16384 cells as a share of the bandwidth, its cache read once; and of the last
512 of 2048 tokens as a share of the bf16 peak, counting the pairs of a token and a cell that it sees.
"""
NO_PEERS = "Not measured here: `make test-peers` does."


def write_page(folder: Path) -> None:
    """Write cpu.md and its plots into the folder, from the results that lie there."""
    found, before, peers = (_read(folder / f"{name}.json") for name in ("cpu", "cpu_before", "cpu_peers"))
    results, old, beside = found["models"], before.get("models", {}), peers.get("models", {})
    all_targets = list(targets(results, beside))
    machine = found["machine"]
    page = PAGE.format(
        machine=f"{machine['threads']} threads of {machine['processor']}, commit {machine['commit']}",
        before=f" `before` is commit {before['machine']['commit']}, measured in the same way." if old else "",
        rounds=max(len(each["share"]) for each in results.values()),
        limits=_limits(found["limits"]),
        load=_load(found["limits"], machine["threads"]),
        verdicts=_verdicts(all_targets),
        targets="\n".join(_targets(all_targets)),
        decode="\n".join(_speeds(results, old, "decode")),
        prompts="\n".join(_speeds(results, old, "prompt")),
        peers="\n".join([*_peers(peers), *PEERS_PLOT]) if beside else NO_PEERS,
        kernels="\n".join(_kernels(found.get("kernels"))),
    )
    (folder / "cpu.md").write_text(page)
    plot(results, old, beside, folder)


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def table(header: Row, rows: Iterable[Row], left: int = 2) -> Iterator[str]:
    """A Markdown table whose first columns are text."""
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * left}{'---:|' * (len(header) - left)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)


def _limits(measured: Sequence[Mapping[str, float]]) -> str:
    units = {"bandwidth": "GB/s", "int8": "GOP/s in int8", "bf16": "in bf16", "f32": "in f32"}
    found = {kind: [each[kind] for each in measured] for kind in units}
    spans = ", ".join(f"{min(rates):.0f} to {max(rates):.0f} {units[kind]}" for kind, rates in found.items())
    return f"Limits in this run: {spans}"


def _load(measured: Sequence[Mapping[str, float]], threads: int) -> str:
    """A warning where other processes wanted the processors."""
    least, most = (pick(each["load"] for each in measured) for pick in (min, max))
    between = f"The load average was between {least:.1f} and {most:.1f}"
    if most <= threads + 1:
        return f"{between}."
    return f"**{between}: others used the machine's {threads} threads too, so that no figure says what it can do.**"


def _verdicts(all_targets: Sequence[Target]) -> str:
    reached, missing = (sum(t.verdict == verdict for t in all_targets) for verdict in ("reached", "not measured"))
    text = f"{reached} of {len(all_targets)} are reached"
    return f"{text}; {missing} are not measured." if missing else f"{text}."


def _targets(all_targets: Iterable[Target]) -> Iterator[str]:
    rows = (
        (
            each.subject,
            each.file_type,
            each.what,
            f"{each.wanted:.2f}",
            "" if each.aim is None else f"{each.aim:.1f}",
            "" if each.measured is None else f"{each.measured:.2f}",
            each.verdict if each.verdict == "reached" else f"**{each.verdict}**",
        )
        for each in all_targets
    )
    return table(("model", "type", "figure", "wanted", "aim", "measured", ""), rows, left=3)


def _speeds(results: Results, old: Results, phase: str) -> Iterator[str]:
    """A row a file: tokens a second and share at each length or depth, and beside it what they were before."""
    tests = sorted({Trial.of(name.split(" ", 2)[2]) for name in results})
    columns = []
    for test in tests:
        if bool(test.prompt) == (phase == "prompt"):
            columns.append((test.name, test.name, results))
            if any(name.endswith(f" {test.name}") for name in old):
                columns.append((f"{test.name} before", test.name, old))
    header = ["model", "type", *["active MB"] * (phase == "decode"), *(title for title, _, _ in columns)]
    rows = []
    for subject in SUBJECTS:
        for file_type in TYPES:
            cells = [_cell(where, point(subject.name, file_type, test)) for _, test, where in columns]
            rows.append([subject.name, file_type, *[_active(subject, file_type)] * (phase == "decode"), *cells])
    return table(header, rows)


def _active(subject: Subject, file_type: str) -> str:
    """Megabytes that a token reads."""
    return f"{weight_bytes(describe(subject.preset, subject.layers, file_type, vocabulary=VOCABULARY)) / 1e6:.0f}"


def _cell(results: Results, name: str) -> str:
    if name not in results:
        return ""
    return f"{median(results[name]['tokens_per_second']):.1f} ({median(results[name]['share']):.0%})"


def _peers(peers: Mapping[str, Any]) -> Iterator[str]:
    yield PEERS.format(**peers)
    rows = []
    for name, found in peers["models"].items():
        subject, file_type, test = name.split(" ", 2)
        error = peers["errors"].get(f"{subject} {file_type}")
        rows.append(
            (
                subject,
                file_type,
                test,
                f"{found['graphrt']:.1f}",
                f"{found['llama.cpp']:.1f}",
                f"{found['ratio']:.2f}",
                "" if found["wanted"] is None else f"{found['wanted']:.1f}",
                "" if error is None else f"{error:.0e}",
            )
        )
    header = ("model", "type", "test", "graphrt", "llama.cpp", "ratio", "wanted", "error of logits")
    yield from table(header, rows, left=3)


def _kernels(found: Mapping[str, Any] | None) -> Iterator[str]:
    if found is None:
        yield "Not measured here."
        return
    yield PRODUCTS
    rows = [
        (name, *_rate(each["decode"], "GB/s"), *_rate(each["prompt"], "GOP/s"), each["prompt"]["kind"])
        for name, each in found["products"].items()
    ]
    yield from table(("type", "1 column", "share", "512 columns", "share", "peak of"), rows, left=1)
    yield ""
    yield ATTENTION
    rows = [
        (name, *_rate(each.get("decode"), "GB/s"), *_rate(each.get("prompt"), "GOP/s"))
        for name, each in found["attention"].items()
    ]
    yield from table(("attention", "1 token", "share", "512 tokens", "share"), rows, left=1)


def _rate(found: Mapping[str, Any] | None, unit: str) -> tuple[str, str]:
    return ("", "") if found is None else (f"{found['rate'] / 1e9:.0f} {unit}", f"{found['share']:.0%}")
