"""The contexts of a model that wait for their next prompt, with what they know of earlier ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock

from graphrt.models.cells import require_room
from graphrt.models.context import Context


class ContextPool:
    """Lends contexts; a prompt goes to the one that knows most of its beginning, which need not be run again.

    Args:
        make: makes one more, for when all are lent.
        idle: contexts to begin with.
    """

    def __init__(self, make: Callable[[], Context], idle: Sequence[Context] = ()) -> None:
        self.idle = list(idle)
        self._make = make
        self._lock = Lock()

    @contextmanager
    def lend(self, prompt: Sequence[int] = ()) -> Iterator[Context]:
        """A context that nobody else uses, and whose only tokens are the beginning of the prompt, as sequence 0.

        The prompt's last token is never among them: it must be run for its logits.
        Raises: GraphError if the prompt is longer than the context.
        """
        context = self._take(prompt) or self._make()
        try:
            require_room(context.size, 0, len(prompt))
            context.seq_keep(0)
            context.seq_rm(0, context.common_prefix(prompt))
            yield context
        finally:
            self.idle.append(context)

    def _take(self, prompt: Sequence[int]) -> Context | None:
        """The best of the contexts that wait, which waits no longer; of equal ones the emptiest."""
        with self._lock:
            best = max(self.idle, key=lambda each: (each.common_prefix(prompt), -each.cells.used), default=None)
            if best is not None:
                self.idle.remove(best)
            return best

    def close(self) -> None:
        """Close every context that waits."""
        for context in self.idle:
            context.close()
        self.idle.clear()
