"""Launches of products with few columns, and of x made ready for them."""

from __future__ import annotations

from graphrt.backends.cuda.registry import FLOATS
from graphrt.backends.cuda.units import Unit

QUANTIZE = Unit("quantize", ["expand", *(f"quantize<{x}>" for x in FLOATS)])
