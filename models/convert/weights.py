"""How the tensors of a Hugging Face folder become tensors of a GGUF file: read late, one at a time.

Legend of dimensions: D model, H heads, E experts, F hidden units of a feed-forward layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from graphrt.dtypes import Array


class Source(Protocol):
    """Where weights come from: a Hugging Face folder, or a stand-in for one."""

    config: dict[str, Any]

    def __contains__(self, name: str) -> bool: ...

    def expect(self, name: str, shape: tuple[int, ...]) -> None: ...

    def read(self, name: str, rows: slice = ...) -> Array: ...

    def pieces(self, name: str) -> Iterable[Array]: ...


@dataclass(frozen=True)
class Weight:
    """A tensor to convert.

    Args:
        name: GGUF name.
        shape: elements in NumPy order.
        chunks: yields its float32 values in order, in pieces [..., columns].
    """

    name: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[Array]]


def copied(checkpoint: Source, name: str, source: str, shape: tuple[int, ...]) -> Weight:
    """A tensor taken as it is.

    Raises: FormatError if the source is missing or has another shape.
    """
    checkpoint.expect(source, shape)
    return Weight(name, shape, lambda: checkpoint.pieces(source))


def changed(
    checkpoint: Source,
    name: str,
    source: str,
    source_shape: tuple[int, ...],
    shape: tuple[int, ...],
    change: Callable[[Array], Array],
) -> Weight:
    """A tensor made from one source by `change`.

    Raises: FormatError if the source is missing or is not of `source_shape`.
    """
    checkpoint.expect(source, source_shape)
    return Weight(name, shape, lambda: [change(checkpoint.read(source))])


def feed_forward(
    checkpoint: Source, layer: str, source: str, width: int, hidden: int, suffix: str = ""
) -> list[Weight]:
    """The three matrices of a gated feed-forward network: gate and up [F, D], down [D, F]."""
    names = (("gate", (hidden, width)), ("up", (hidden, width)), ("down", (width, hidden)))
    return [
        copied(checkpoint, f"{layer}.ffn_{name}{suffix}.weight", f"{source}.{name}_proj.weight", shape)
        for name, shape in names
    ]


def experts(checkpoint: Source, layer: str, source: str, count: int, width: int, hidden: int) -> list[Weight]:
    """The matrices of E experts, each stacked: gate and up [E, F, D], down [E, D, F].

    The source keeps one matrix per expert (named gate_proj, up_proj, down_proj, or w1, w3, w2), or all of them in
    gate_up_proj [E, 2F, D] and down_proj [E, D, F].
    """
    stacked = {"gate": (count, hidden, width), "up": (count, hidden, width), "down": (count, width, hidden)}
    fused = f"{source}.experts.gate_up_proj"
    if fused in checkpoint:
        checkpoint.expect(fused, (count, 2 * hidden, width))
        return [
            Weight(
                f"{layer}.ffn_gate_exps.weight", stacked["gate"], _rows(checkpoint, fused, count, slice(None, hidden))
            ),
            Weight(f"{layer}.ffn_up_exps.weight", stacked["up"], _rows(checkpoint, fused, count, slice(hidden, None))),
            copied(checkpoint, f"{layer}.ffn_down_exps.weight", f"{source}.experts.down_proj", stacked["down"]),
        ]
    old = f"{source}.experts.0.w1.weight" in checkpoint
    spelling = {"gate": "w1", "up": "w3", "down": "w2"} if old else {name: f"{name}_proj" for name in stacked}
    found = []
    for name, shape in stacked.items():
        sources = [f"{source}.experts.{expert}.{spelling[name]}.weight" for expert in range(count)]
        single = [copied(checkpoint, expert, expert, shape[1:]) for expert in sources]
        found.append(Weight(f"{layer}.ffn_{name}_exps.weight", shape, _joined(single)))
    return found


def _rows(checkpoint: Source, source: str, count: int, rows: slice) -> Callable[[], Iterator[Array]]:
    """Some rows of each of `count` stacked matrices."""
    return lambda: (checkpoint.read(source, slice(index, index + 1))[0, rows] for index in range(count))


def _joined(weights: list[Weight]) -> Callable[[], Iterator[Array]]:
    return lambda: (chunk for weight in weights for chunk in weight.chunks())
