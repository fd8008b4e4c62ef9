"""Fusion of the choice of experts, as models/routing.py writes it with a dozen ops."""

from __future__ import annotations

from functools import partial

from graphrt import router_pattern
from graphrt.backends.cuda.router import MOST, route

router = partial(router_pattern.router, most=MOST, lower=route)
