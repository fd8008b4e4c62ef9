"""A schedule as one page of HTML that needs nothing else: open it in a browser, from a disk as well as from a server.

The page's parts are in graphrt/templates/; this module fills in what the schedule decided, as JSON.
"""

from __future__ import annotations

import html
import json
import re
from importlib.resources import files
from typing import Any

from graphrt.explain import Explainer, TensorNote
from graphrt.layers import layers_of
from graphrt.schedule import Schedule
from graphrt.splits import shown_in
from graphrt.tensor import Tensor


def page(schedule: Schedule, title: str) -> str:
    """The page of a schedule; `title` is what was scheduled, in the reader's words."""
    # In a script element only "</" and "<!--" could end or hide the text; without "<" there is neither.
    data = json.dumps(_data(schedule), ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    script = "\n".join(map(_template, ("layout.js", "details.js", "schedule.js")))
    parts = {"title": html.escape(title), "data": data, "style": _template("schedule.css"), "script": script}
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _template("schedule.html"))


def _template(name: str) -> str:
    return files("graphrt").joinpath("templates", name).read_text(encoding="utf-8")


def _data(schedule: Schedule) -> dict[str, Any]:
    """What the page's script reads: every tensor once, in order; splits and copies refer to them by number."""
    explainer = Explainer(schedule)
    told = explainer.explain()
    tensors = [*schedule.graph.leafs, *schedule.graph.nodes]
    number = {tensor: i for i, tensor in enumerate(tensors)}
    layers, splits = layers_of(tensors), shown_in(schedule.graph, schedule.splits)
    outputs = set(schedule.graph.outputs)

    def described(tensor: Tensor) -> dict[str, Any]:
        return {
            **_facts(explainer.tensor(tensor)),
            "op": tensor.op.name if tensor.op is not None else None,
            "params": {key: str(value) for key, value in tensor.params.items()},
            "layer": layers[tensor],
            "split": splits.get(tensor),
            "sources": [number[src] for src in tensor.srcs if src is not None],
            "output": tensor in outputs,
            **_placed(schedule, tensor, number),
        }

    def copies(before: int) -> list[dict[str, Any]]:
        return [
            {
                "tensor": number[copy.value],
                "nbytes": copy.nbytes,
                "from": schedule.placements.memory_of(copy.value),
                "to": copy.memory,
                "byExpert": copy.experts is not None,
                "beside": copy.beside,
            }
            for copy in schedule.copies.before.get(before, ())
        ]

    return {
        "computeBytes": told.compute_bytes,
        "backends": [{"name": backend.name, "memory": backend.memory} for backend in schedule.backends],
        "memories": [
            {
                "name": memory.name,
                "compute": memory.compute_bytes,
                "resident": memory.resident_bytes,
                "limit": memory.limit,
                "peak": memory.peak[:8],
            }
            for memory in told.memories
        ],
        "rules": told.rules,
        "tensors": [described(tensor) for tensor in tensors],
        "splits": [{"backend": part.backend.name, "copies": copies(i)} for i, part in enumerate(schedule.splits)],
        "outputCopies": copies(len(schedule.splits)),
    }


def _facts(note: TensorNote) -> dict[str, Any]:
    return {
        "name": note.name,
        "role": note.role,
        "dtype": note.dtype,
        "shape": note.shape,
        "nbytes": note.nbytes,
        "memory": note.memory,
        "backend": note.backend,
        "viewOf": note.view_of,
    }


def _placed(schedule: Schedule, tensor: Tensor, number: dict[Tensor, int]) -> dict[str, Any]:
    """Why a node, weight or state is where it is; views, inputs and constants are placed by nobody."""
    placement = schedule.placements.nodes.get(tensor) or schedule.placements.homes.get(tensor)
    donor = schedule.memory.inplace.get(tensor)
    return {
        "reason": placement.reason if placement else None,
        "rejected": placement.rejected if placement else (),
        "inPlaceOf": None if donor is None else number[donor],
    }
