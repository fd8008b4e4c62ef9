"""The exceptions of graphrt. Each message names the op, tensor or file, the numbers, and the remedy."""

from __future__ import annotations


class GraphrtError(Exception):
    """The root of every error that graphrt raises on purpose."""


class GraphError(GraphrtError, ValueError):
    """A graph, tensor or request that cannot be right: wrong shape, dtype, parameter, token."""


class PlacementError(GraphrtError):
    """No backend can take a node or hold its memory."""


class MemoryFullError(PlacementError):
    """A device's memory has no room for a buffer.

    Args:
        backend: its name.
        free: bytes that it still has.
    """

    def __init__(self, message: str, backend: str, free: int) -> None:
        super().__init__(message)
        self.backend, self.free = backend, free


class KernelError(GraphrtError):
    """A kernel cannot be compiled or failed while it ran."""


class NumericsError(GraphrtError):
    """A result that is not finite, or not what the reference gives; found by GRAPH_CHECK_NUMERICS."""


class Cancelled(GraphrtError):
    """A run that was stopped because someone asked for it."""


class FormatError(GraphrtError, ValueError):
    """A file that is damaged, or of a kind that graphrt cannot read."""


class SettingsError(GraphrtError, ValueError):
    """A setting, environment variable or override rule that cannot be understood."""
