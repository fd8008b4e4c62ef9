"""The results of mla_grid.py as a page of Markdown tables and as a heat map."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from math import log2
from pathlib import Path
from typing import Any

Results = Mapping[str, Mapping[str, Any]]
Panel = dict[tuple[int, int], Mapping[str, Any]]

CHOICES = ("absorbed", "flashmla2")  # of auto
REST = ("naive", "pp-opt")


def panels(results: Results) -> dict[str, Panel]:
    """The results by model and cache: (tokens, cells) -> what was measured there."""
    found: dict[str, Panel] = {}
    for name, result in results.items():
        model, cache, size = name.split(", ")
        tokens, cells = size.split(" x ")
        found.setdefault(f"{model}, {cache}", {})[int(tokens), int(cells)] = result
    return found


def ratio(result: Mapping[str, Any]) -> float | None:
    """Auto's time over the best one's; None where auto's form, or the other one, was left out."""
    seconds = result["seconds"]
    if any(form not in seconds for form in CHOICES):
        return None
    return seconds[result["auto"]] / min(seconds[form] for form in CHOICES)


PAGE = """# Every form of MLA attention, over tokens and contexts

One layer's attention with its writes to the cache: tokens in the last cells of a context, weights in q8_0, {threads}
threads of {processor}. Milliseconds: the least of a few runs in turns; `~` is an estimate of what was left out because
it would take too long. auto takes the time of the form that it chooses, absorbed or flashmla2, which here expands for
any number of tokens; naive and pp-opt are over caches of their own, in f16. The last column is auto's time over that of
the faster one of its two forms, where both were measured.

{summary}

![Which way is faster, over tokens and contexts, and what auto chose](mla_grid.png)

`python -m docs.benchmarks.mla_grid --threads {threads}` measures again.
{tables}
"""


def page(results: Results, threads: int) -> str:
    """The whole page."""
    ratios = [found for result in results.values() if (found := ratio(result)) is not None]
    within = sum(found <= 1.05 for found in ratios)
    summary = (
        f"auto is within 5 % of the best of its two forms at {within} of {len(ratios)} points; the worst one takes "
    )
    summary += f"{max(ratios):.2f} of the best's time."
    lines = [line for name, panel in panels(results).items() for line in _table(name, panel)]
    return PAGE.format(threads=threads, processor=_processor(), summary=summary, tables="\n".join(lines))


def _table(name: str, panel: Panel) -> Iterator[str]:
    forms = [form for form in (*CHOICES, *REST) if any(form in result["seconds"] for result in panel.values())]
    yield from ("", f"## {name}", "", f"| context | tokens | {' | '.join(forms)} | auto | auto / best |")
    yield f"|---:|---:|{'---:|' * len(forms)}---|---:|"
    for (tokens, cells), result in sorted(panel.items(), key=lambda item: item[0][::-1]):
        times = " | ".join(_milliseconds(result, form) for form in forms)
        measured = ratio(result)
        share = "" if measured is None else f"{measured:.2f}"
        yield f"| {cells} | {tokens} | {times} | {result['auto']} | {share} |"


def _processor() -> str:
    found = Path("/proc/cpuinfo")
    lines = found.read_text().splitlines() if found.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _milliseconds(result: Mapping[str, Any], form: str) -> str:
    if form in result["seconds"]:
        return f"{1e3 * result['seconds'][form]:.3g}"
    return f"~{1e3 * result['left_out'][form]:.0f}" if form in result["left_out"] else ""


def plot(results: Results, path: Path) -> None:
    """Colour: how many times faster one way is; letters: what auto chose, with its time over the best's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = panels(results)
    figure, axes = pyplot.subplots(
        1, len(found), figsize=(3.4 * len(found) + 1, 4.6), dpi=150, layout="constrained", squeeze=False
    )
    for axis, (name, panel) in zip(axes[0], found.items(), strict=True):
        tokens, contexts = sorted({key[0] for key in panel}), sorted({key[1] for key in panel})
        grid = [[_advantage(panel.get((count, cells))) for cells in contexts] for count in tokens]
        image = axis.imshow(grid, cmap="PuOr", vmin=-3, vmax=3, aspect="auto", origin="lower")
        axis.set(title=name, xlabel="cells of context", xticks=range(len(contexts)), xticklabels=contexts)
        axis.set(yticks=range(len(tokens)), yticklabels=tokens)
        for row, count in enumerate(tokens):
            for column, cells in enumerate(contexts):
                colour = "white" if abs(grid[row][column]) > 2 else "black"
                label = _label(panel.get((count, cells)))
                axis.text(column, row, label, color=colour, ha="center", va="center", fontsize=7)
    axes[0][0].set_ylabel("tokens")
    bar = figure.colorbar(image, ax=axes[0], ticks=range(-3, 4))
    bar.ax.set_yticklabels(["8x", "4x", "2x", "1x", "2x", "4x", "8x"])
    bar.set_label("absorbed is faster          flashmla2 is faster")
    figure.suptitle("Time of one layer's attention; letters: auto's choice, and its time over the best one's")
    figure.savefig(path)


def _advantage(result: Mapping[str, Any] | None) -> float:
    """log2 of absorbed's time over flashmla2's; where one was left out, by its estimate."""
    if result is None:
        return float("nan")
    absorbed, expanded = (result["seconds"].get(form, result["left_out"].get(form)) for form in CHOICES)
    return log2(absorbed / expanded)


def _label(result: Mapping[str, Any] | None) -> str:
    if result is None:
        return ""
    share = ratio(result)
    return f"{'A' if result['auto'] == 'absorbed' else 'F'} {'' if share is None else f'{share:.2f}'}"
