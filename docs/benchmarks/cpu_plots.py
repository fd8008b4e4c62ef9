"""The plots of the CPU's speed: bars of shares of the limits, and lines over prompt length and context depth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from docs.benchmarks.cpu_models import SUBJECTS, TYPES
from docs.benchmarks.cpu_run import Trial
from docs.benchmarks.cpu_targets import DECODE, DECODE_SHARES, PROMPT, Results, point

COLOURS = {"bf16": "#4c6ef5", "q8_0": "#12b886", "q4_0": "#f59f00", "q4_k_m": "#e64980"}
STYLES = {"V2-Lite": "-", "Mixtral": "--"}
OLD, INK = "#c3c9d1", "#343a40"


def plot(results: Results, old: Results, folder: Path) -> None:
    """Write cpu_shares.png and cpu_context.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style = {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": INK,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#e9ecef",
        "font.size": 9,
    }
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(1, 2, figsize=(11, 3.8), dpi=150, layout="constrained", sharey=True)
        _shares(axes[0], DECODE, results, old, "Decoding: share of the memory bandwidth")
        _shares(axes[1], PROMPT, results, old, "Prompt of 512: share of the arithmetic peak")
        axes[0].yaxis.set_major_formatter("{x:.0%}")
        figure.savefig(folder / "cpu_shares.png")
        pyplot.close(figure)
        figure, axes = pyplot.subplots(1, 2, figsize=(11, 3.8), dpi=150, layout="constrained")
        _over_length(axes[0], results, "prompt")
        _over_length(axes[1], results, "depth")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", frameon=False)
        figure.savefig(folder / "cpu_context.png")
        pyplot.close(figure)


def _shares(axis: Any, test: str, results: Results, old: Results, title: str) -> None:
    """Two bars a file, before and now; a tick at the target."""
    names = [(subject.name, file_type) for subject in SUBJECTS for file_type in TYPES]
    at = [index + (index >= len(TYPES)) * 0.7 for index in range(len(names))]
    for place, (subject, file_type) in zip(at, names, strict=True):
        key = point(subject, file_type, test)
        if key in old:
            axis.bar(place - 0.2, median(old[key]["share"]), 0.38, color=OLD)
        if key in results:
            share = median(results[key]["share"])
            axis.bar(place + 0.2, share, 0.38, color=COLOURS[file_type])
            axis.text(place + 0.2, share + 0.01, f"{share:.0%}", ha="center", va="bottom", fontsize=8, color=INK)
        if test == DECODE:
            axis.hlines(DECODE_SHARES[file_type], place - 0.45, place + 0.45, color=INK, linewidth=1.2)
    axis.set_title(title, loc="left", fontsize=10)
    axis.set_xticks(at, [file_type for _, file_type in names])
    axis.set_ylim(0, 1.08)
    axis.grid(axis="x", visible=False)
    axis.tick_params(axis="both", length=0)
    for number, subject in enumerate(SUBJECTS):
        middle = sum(at[number * len(TYPES) : (number + 1) * len(TYPES)]) / len(TYPES)
        axis.text(middle, -0.13, subject.name, transform=axis.get_xaxis_transform(), ha="center", weight="bold")
    axis.bar(0, 0, color=OLD, label="before")
    if test == DECODE:
        axis.plot([], [], color=INK, linewidth=1.2, label="target")
    axis.legend(frameon=False, loc="upper right", ncols=2, fontsize=8, bbox_to_anchor=(1, 1.02))


def _over_length(axis: Any, results: Results, what: str) -> None:
    """Tokens a second over the prompt's length, or over the tokens that the context holds."""
    for subject in SUBJECTS:
        for file_type in TYPES:
            points = _points(results, subject.name, file_type, what)
            if len(points) > 1:
                lengths, speeds = zip(*points, strict=True)
                if what == "depth":
                    speeds = tuple(speed / speeds[0] for speed in speeds)
                label = f"{subject.name} {file_type}"
                line = {"color": COLOURS[file_type], "linestyle": STYLES[subject.name]}
                axis.plot(lengths, speeds, marker="o", markersize=3.5, linewidth=1.5, label=label, **line)
    axis.set_ylim(bottom=0)
    if what == "prompt":
        axis.set_xscale("log", base=2)
        axis.set_title("Prompts: tokens a second", loc="left", fontsize=10)
        _label(axis, "tokens of the prompt", sorted({n for n, _ in _all(results, what)}))
    else:
        axis.yaxis.set_major_formatter("{x:.0%}")
        axis.set_title("Decoding: speed over that in an empty context", loc="left", fontsize=10)
        _label(axis, "tokens in the context", sorted({n for n, _ in _all(results, what)}))


def _all(results: Results, what: str) -> list[tuple[int, float]]:
    return [each for s in SUBJECTS for kind in TYPES for each in _points(results, s.name, kind, what)]


def _label(axis: Any, text: str, ticks: Sequence[int]) -> None:
    axis.set_xlabel(text)
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()


def _points(results: Results, subject: str, file_type: str, what: str) -> list[tuple[int, float]]:
    """(length, tokens a second), by length."""
    start = f"{subject} {file_type} "
    found = []
    for name, each in results.items():
        if name.startswith(start):
            test = Trial.of(name.removeprefix(start))
            if bool(test.prompt) == (what == "prompt"):
                found.append((test.prompt or test.depth, median(each["tokens_per_second"])))
    return sorted(found)
