"""Failures on demand: the nth copy or kernel, or the next kernel of an op, raises once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Failures:
    """What is to fail; each happens once, and then is None.

    Args:
        copy: copies until the one that fails, itself included.
        kernel: kernels until the one that fails, itself included, or the name of an op.
        error: what is raised.
    """

    copy: int | None
    kernel: int | str | None
    error: BaseException

    def before_copy(self) -> None:
        """Count a copy.

        Raises: the error, if this copy is to fail.
        """
        if self.copy is not None:
            self.copy -= 1
            if self.copy <= 0:
                self.copy = None
                raise self.error

    def before_kernel(self, op: str) -> None:
        """Count a kernel.

        Raises: the error, if this kernel is to fail.
        """
        if isinstance(self.kernel, int):
            self.kernel -= 1
        if self.kernel == op or (isinstance(self.kernel, int) and self.kernel <= 0):
            self.kernel = None
            raise self.error
