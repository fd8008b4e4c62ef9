"""graphrt: tensor compute graphs in the style of ggml, built in Python and run at native speed.

import numpy as np, graphrt
x = graphrt.input("x", (4, 64))
w = graphrt.weight("w", np.ones((32, 64), np.float32))
y = graphrt.ops.silu(graphrt.ops.mul_mat(w, x))
graphrt.Scheduler().run(graphrt.Graph(y), x=np.ones((4, 64), np.float32))
"""

from __future__ import annotations

import importlib
from typing import Any

from graphrt.dtypes import DType
from graphrt.errors import (
    Cancelled,
    FormatError,
    GraphError,
    GraphrtError,
    KernelError,
    NumericsError,
    PlacementError,
    SettingsError,
)
from graphrt.graph import Graph
from graphrt.op import Cost, Meta, Op, op
from graphrt.pipeline import Pipeline
from graphrt.plan import Plan
from graphrt.schedule import Schedule
from graphrt.scheduler import Scheduler, SharedArena
from graphrt.settings import Settings
from graphrt.tensor import Tensor, constant, input, state, weight

__version__ = "0.1.0"

__all__ = [
    "Cancelled",
    "Cost",
    "DType",
    "FormatError",
    "Graph",
    "GraphError",
    "GraphrtError",
    "KernelError",
    "Meta",
    "Model",
    "NumericsError",
    "Op",
    "Pipeline",
    "PlacementError",
    "Plan",
    "Schedule",
    "Scheduler",
    "Settings",
    "SettingsError",
    "SharedArena",
    "Tensor",
    "Tokenizer",
    "constant",
    "input",
    "load",
    "op",
    "ops",
    "state",
    "testing",
    "weight",
]

# The layers above the core, loaded when first asked for: `import graphrt` stays fast and the core imports none of them.
_LATER = {
    "load": ("graphrt.models.model", "load"),
    "Model": ("graphrt.models.model", "Model"),
    "Tokenizer": ("graphrt.models.tokenizer", "Tokenizer"),
    "ops": ("graphrt.ops", None),
    "testing": ("graphrt.testing", None),
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'graphrt' has no attribute {name!r}")
    module, attribute = _LATER[name]
    loaded = importlib.import_module(module)
    return loaded if attribute is None else getattr(loaded, attribute)


def __dir__() -> list[str]:
    return __all__
