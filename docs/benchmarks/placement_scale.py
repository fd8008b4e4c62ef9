"""How long scheduling takes as graphs grow: `python -m docs.benchmarks.placement_scale`, from the root of the project.

The graphs have DeepSeek-V3's shapes, with four low-rank adapters behind each layer, and no data; two devices hold the
weights and the experts stay on the host, so there are two splits a layer. Writes placement_scale.png beside itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from graphrt import Graph, Scheduler, overrides
from graphrt.backends.sim import SimBackend
from graphrt.explain import describe
from tests import shapes

LAYERS = (8, 15, 30, 61, 122, 244, 488)
REPEATS = 7
LIMIT = 0.3


def large_graph(layers: int) -> Graph:
    """At 61 layers a little over 5,000 nodes."""
    return shapes.graph("deepseek-v3", layers, mla="naive", adapters=4)


def scheduler_for(layers: int) -> Scheduler:
    """The first half of the layers on one device, the rest on another, the experts on the host."""
    rules = [overrides.cpu_moe(), *overrides.gpu_layers(layers // 2, layers, "sim1"), ".=sim0"]
    return Scheduler([SimBackend("sim0"), SimBackend("sim1"), "cpu"], overrides=rules)


def seconds(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """The least CPU time of a few calls: what one core needs, whatever else runs on the machine."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


@dataclass(frozen=True)
class Result:
    """Seconds to order and check a graph, to place, split and plan it, and to explain it with every node's reasons."""

    nodes: int
    splits: int
    building: float
    planning: float
    explaining: float

    @property
    def total(self) -> float:
        return self.building + self.planning + self.explaining


def measure(layers: int) -> Result:
    """Schedule a graph of so many layers."""
    graph, scheduler = large_graph(layers), scheduler_for(layers)
    schedule = scheduler.schedule(graph)
    building = seconds(lambda: Graph(graph.outputs, phase=graph.phase))
    planning = seconds(lambda: scheduler.schedule(graph))
    explaining = seconds(lambda: describe(schedule, level=3))
    return Result(len(graph.nodes), len(schedule.splits), building, planning, explaining)


def plot(results: list[Result], path: Path) -> None:
    """Milliseconds over nodes, with the line that 5,000 nodes and linear growth allow."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    nodes = [result.nodes for result in results]
    parts = [[getattr(result, part) * 1e3 for result in results] for part in ("building", "planning", "explaining")]
    figure, axes = pyplot.subplots(figsize=(7.2, 4.2), dpi=150, layout="constrained")
    labels = ["ordered, checked", "placed, split, planned", "explained"]
    axes.stackplot(nodes, *parts, labels=labels, colors=["#1d3f7a", "#2f6fd0", "#9fc0f0"])
    axes.plot(nodes, [result.total * 1e3 for result in results], "o", color="#1b2130", markersize=4)
    axes.plot([0, nodes[-1]], [0, LIMIT * 1e3 * nodes[-1] / 5000], "--", color="#d2601a", label="300 ms at 5,000 nodes")
    axes.set(xlabel="nodes", ylabel="milliseconds on one core", xlim=(0, None), ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left")
    figure.savefig(path)


def main() -> None:
    results = [measure(layers) for layers in LAYERS]
    print("| layers | nodes | splits | ordered, checked | placed, split, planned | explained | together | µs a node |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|")
    for layers, one in zip(LAYERS, results, strict=True):
        times = (f"{time * 1e3:.0f} ms" for time in (one.building, one.planning, one.explaining, one.total))
        cells = (layers, f"{one.nodes:,}", one.splits, *times, f"{one.total / one.nodes * 1e6:.0f}")
        print("|", " | ".join(map(str, cells)), "|")
    plot(results, Path(__file__).with_suffix(".png"))


if __name__ == "__main__":
    main()
