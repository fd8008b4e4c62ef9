"""A graph in Graphviz's DOT language: `dot -Tsvg graph.dot > graph.svg`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from graphrt.graph import Graph
from graphrt.tensor import Tensor

# "blk.3.ffn_up.weight" (a weight of layer 3) and "ffn_out-3" (a node of layer 3)
_LAYER = re.compile(r"(?:^|\.)blk\.(\d+)\.|-(\d+)(?:$|[ .(])")

_LEAF_STYLE = {
    "weight": 'shape=box, style=filled, fillcolor="#fff2cc"',
    "constant": 'shape=box, style=filled, fillcolor="#eeeeee"',
    "input": 'shape=box, style=filled, fillcolor="#d5e8d4"',
    "state": 'shape=cylinder, style=filled, fillcolor="#dae8fc"',
}
_BACKEND_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b")


def dot(graph: Graph, backends: Mapping[Tensor, str] | None = None) -> str:
    """Write a graph as DOT, nodes and leafs of one layer together in a box.

    Args:
        graph: any graph; large ones (a whole model) are for `dot -Tsvg` and a browser rather than for print.
        backends: the name of each node's backend, as in {node: placement.backend.name}; given, it colours the nodes.
    Returns: the text of one `digraph`.
    """
    tensors, backends = [*graph.leafs, *graph.nodes], backends or {}
    identity = {tensor: f"n{number}" for number, tensor in enumerate(tensors)}
    colours = _colours(backends)
    lines = ["digraph graphrt {", '  rankdir=TB; node [fontname="monospace", fontsize=10];']
    for layer, members in _by_layer(tensors).items():
        nodes = [_statement(tensor, identity[tensor], backends.get(tensor, ""), colours, graph) for tensor in members]
        lines += _boxed(layer, nodes)
    for node in graph.nodes:
        for position, src in enumerate(node.srcs):
            if src is not None:
                dashed = " [style=dashed]" if position == 0 and node.root is src.root else ""
                lines.append(f"  {identity[src]} -> {identity[node]}{dashed};")
    return "\n".join([*lines, "}", ""])


def _by_layer(tensors: list[Tensor]) -> dict[int | None, list[Tensor]]:
    """Tensors by the layer that their names tell; None for those outside every layer."""
    layers: dict[int | None, list[Tensor]] = {}
    for tensor in tensors:
        match = _LAYER.search(tensor.name)
        layers.setdefault(int(match[1] or match[2]) if match else None, []).append(tensor)
    return layers


def _boxed(layer: int | None, nodes: list[str]) -> list[str]:
    if layer is None:
        return [f"  {node}" for node in nodes]
    return [f"  subgraph cluster_{layer} {{", f'    label="layer {layer}";', *(f"    {node}" for node in nodes), "  }"]


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
