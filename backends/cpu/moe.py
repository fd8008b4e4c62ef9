"""Kernels of the ops of mixtures of experts."""

from graphrt.backends.cpu import weighted_sum

__all__ = ["weighted_sum"]
