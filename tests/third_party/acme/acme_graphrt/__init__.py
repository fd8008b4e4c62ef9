"""What Acme adds to graphrt: the op hard_swish, and the backend "acme"."""

from acme_graphrt.hard_swish import hard_swish

__all__ = ["hard_swish"]
