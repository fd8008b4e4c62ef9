"""A graph in Graphviz's DOT language: `dot -Tsvg graph.dot > graph.svg`."""

from __future__ import annotations

from collections.abc import Mapping

from graphrt.graph import Graph
from graphrt.layers import layers_of
from graphrt.schedule import Schedule
from graphrt.splits import shown_in, value_of
from graphrt.tensor import Tensor

_LEAF_STYLE = {
    "weight": 'shape=box, style=filled, fillcolor="#fff2cc"',
    "constant": 'shape=box, style=filled, fillcolor="#eeeeee"',
    "input": 'shape=box, style=filled, fillcolor="#d5e8d4"',
    "state": 'shape=cylinder, style=filled, fillcolor="#dae8fc"',
}
_BACKEND_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b")


def dot(what: Graph | Schedule) -> str:
    """Write a graph as DOT.

    Args:
        what: a graph, whose layers become boxes; or a schedule, whose splits do, with its nodes coloured by backend and
            the bytes on edges that cross to another memory. A whole model is for a browser rather than for print.
    Returns: the text of one `digraph`.
    """
    if isinstance(what, Graph):
        layers = layers_of([*what.leafs, *what.nodes])
        return _digraph(what, {tensor: f"layer {n}" for tensor, n in layers.items() if n is not None}, {}, {})
    titles = [f"split {number}: {part.backend.name}" for number, part in enumerate(what.splits)]
    boxes = {tensor: titles[number] for tensor, number in shown_in(what.graph, what.splits).items()}
    backends = {node: placement.backend.name for node, placement in what.placements.nodes.items()}
    sizes = {(copy.value, reader): copy.nbytes for copy in what.copies.all() for reader in copy.readers}
    return _digraph(what.graph, boxes, backends, sizes)


def _digraph(
    graph: Graph,
    boxes: Mapping[Tensor, str],
    backends: Mapping[Tensor, str],
    sizes: Mapping[tuple[Tensor, Tensor], int],
) -> str:
    """The text: what belongs to a box inside it, and the bytes of each edge that crosses from one memory to another."""
    tensors = [*graph.leafs, *graph.nodes]
    identity = {tensor: f"n{number}" for number, tensor in enumerate(tensors)}
    colours = _colours(backends)
    members: dict[str | None, list[str]] = {}
    for tensor in tensors:
        statement = _statement(tensor, identity[tensor], backends.get(tensor, ""), colours, graph)
        members.setdefault(boxes.get(tensor), []).append(statement)
    lines = ["digraph graphrt {", '  rankdir=TB; node [fontname="monospace", fontsize=10];']
    for number, (label, statements) in enumerate(members.items()):
        lines += _boxed(number, label, statements)
    for node in graph.nodes:
        for position, src in enumerate(node.srcs):
            if src is not None:
                size = sizes.get((value_of(src), node))
                style = ["style=dashed"] if position == 0 and node.root is src.root else []
                style += [f'label="{size:,} B", fontsize=9, penwidth=2'] if size is not None else []
                lines.append(f"  {identity[src]} -> {identity[node]}{_attributes(style)};")
    return "\n".join([*lines, "}", ""])


def _attributes(items: list[str]) -> str:
    return f" [{', '.join(items)}]" if items else ""


def _boxed(number: int, label: str | None, statements: list[str]) -> list[str]:
    if label is None:
        return [f"  {statement}" for statement in statements]
    inside = [f"    {statement}" for statement in statements]
    return [f"  subgraph cluster_{number} {{", f'    label="{_label([label])}";', *inside, "  }"]


def _statement(tensor: Tensor, identity: str, backend: str, colours: Mapping[str, str], graph: Graph) -> str:
    kind = tensor.op.name if tensor.op is not None else tensor.role
    label = [tensor.name, f"{kind} {tensor.dtype.name}{list(tensor.shape)}", *([backend] if backend else [])]
    style = _LEAF_STYLE[tensor.role] if tensor.op is None else "shape=box, style=rounded"
    if tensor.op is not None and tensor.op.kind == "view":
        style = "shape=plaintext"
    if backend:
        style += f', color="{colours[backend]}", penwidth=2'
    if tensor in graph.outputs:
        style += ", peripheries=2"
    return f'{identity} [label="{_label(label)}", {style}];'


def _label(lines: list[str]) -> str:
    """Lines of text as the inside of a quoted DOT label."""
    return r"\n".join(line.replace("\\", r"\\").replace('"', r"\"").replace("\n", " ") for line in lines)


def _colours(backends: Mapping[Tensor, str]) -> dict[str, str]:
    names = list(dict.fromkeys(backends.values()))
    return {name: _BACKEND_COLOURS[i % len(_BACKEND_COLOURS)] for i, name in enumerate(names)}
