"""The plots of the CPU's speed: bars of shares of the limits and of ratios, lines over prompts and contexts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from docs.benchmarks.cpu_models import SUBJECTS, TYPES
from docs.benchmarks.cpu_run import Trial
from docs.benchmarks.cpu_targets import DECODE, DECODE_SHARES, PROMPT, Results, point

COLOURS = {"bf16": "#4c6ef5", "q8_0": "#12b886", "q4_0": "#f59f00", "q4_k_m": "#e64980"}
STYLES = {"V2-Lite": "-", "Mixtral": "--"}
OLD, INK = "#c3c9d1", "#343a40"


STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e9ecef",
    "font.size": 9,
}

File = tuple[str, str]
"""The names of a model and of a file type."""


def plot(results: Results, old: Results, peers: Results, folder: Path) -> None:
    """Write cpu_shares.png and cpu_context.png, and cpu_peers.png where there is a comparison."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(1, 2, figsize=(11, 3.8), dpi=150, layout="constrained", sharey=True)
        _bars(axes[0], _shares(results, DECODE), _shares(old, DECODE), _wanted_shares(), "{:.0%}")
        _bars(axes[1], _shares(results, PROMPT), _shares(old, PROMPT), {}, "{:.0%}")
        axes[0].set_title("Decoding: share of the memory bandwidth", loc="left", fontsize=10)
        axes[1].set_title("Prompt of 512: share of the arithmetic peak", loc="left", fontsize=10)
        axes[0].set_ylim(0, 1.08)
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
        if peers:
            figure, axes = pyplot.subplots(1, 2, figsize=(11, 3.8), dpi=150, layout="constrained")
            for axis, test, what in zip(axes, (DECODE, PROMPT), ("Decoding", "Prompt of 512"), strict=True):
                _bars(axis, _field(peers, test, "ratio"), {}, _field(peers, test, "wanted"), "{:.1f}")
                axis.set_title(f"{what}: speed over llama.cpp's", loc="left", fontsize=10)
            figure.savefig(folder / "cpu_peers.png")
            pyplot.close(figure)


def _shares(results: Results, test: str) -> dict[File, float]:
    return {file: median(shares) for file, shares in _field(results, test, "share").items()}


def _field(results: Results, test: str, field: str) -> dict[File, Any]:
    """One field of a test's results, by file."""
    files = [(subject.name, file_type) for subject in SUBJECTS for file_type in TYPES]
    return {file: results[key][field] for file in files if (key := point(*file, test)) in results}


def _wanted_shares() -> dict[File, float]:
    return {(subject.name, file_type): share for subject in SUBJECTS for file_type, share in DECODE_SHARES.items()}


def _bars(
    axis: Any, now: Mapping[File, float], old: Mapping[File, float], wanted: Mapping[File, float], form: str
) -> None:
    """A bar a file, with its number, and a grey one beside it of what it was before; a line at the target."""
    files = [(subject.name, file_type) for subject in SUBJECTS for file_type in TYPES]
    at = [index + (index >= len(TYPES)) * 0.7 for index in range(len(files))]
    width, shift = (0.54, 0.15) if old else (0.62, 0.0)
    for place, file in zip(at, files, strict=True):
        if file in old:
            axis.bar(place - 0.28, old[file], 0.28, color=OLD)
        if file in now:
            axis.bar(place + shift, now[file], width, color=COLOURS[file[1]])
            label = {"ha": "center", "va": "center", "color": "white", "fontsize": 7.5, "weight": "bold"}
            axis.text(place + shift, now[file] / 2, form.format(now[file]), **label)
        if file in wanted:
            axis.hlines(wanted[file], place - 0.45, place + 0.45, color=INK, linewidth=1.2)
    axis.set_xticks(at, [file_type for _, file_type in files])
    axis.grid(axis="x", visible=False)
    axis.tick_params(axis="both", length=0)
    for number, subject in enumerate(SUBJECTS):
        middle = sum(at[number * len(TYPES) : (number + 1) * len(TYPES)]) / len(TYPES)
        axis.text(middle, -0.13, subject.name, transform=axis.get_xaxis_transform(), ha="center", weight="bold")
    if old:
        axis.bar(0, 0, color=OLD, label="before")
    if wanted:
        axis.plot([], [], color=INK, linewidth=1.2, label="target")
    axis.margins(y=0.12)
    if old or wanted:
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
