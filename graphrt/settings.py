"""Every setting once: its environment variable, its default and its meaning."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from graphrt.errors import SettingsError


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError("must be 0 or more")
    return value


AUTO = -1  # a batch that a backend derives from what it measured
OFFLOAD_BATCH = 32  # ggml's; where nothing is set or measured


def _batch(text: str) -> int:
    return AUTO if text.strip().lower() == "auto" else _count(text)


def _rules(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.replace(";", "\n").splitlines() if line.strip())


def _setting(default: Any, variable: str, parse: Callable[[str], Any], meaning: str) -> Any:
    return field(default=default, metadata={"variable": variable, "parse": parse, "meaning": meaning})


@dataclass(frozen=True)
class Settings:
    """The settings of a scheduler and its backends; keywords override the environment, which overrides the defaults."""

    sched_debug: int = _setting(
        0,
        "GRAPH_SCHED_DEBUG",
        _count,
        "1 prints splits, 2 every node with its backend and reason, 3 rejected backends and fusions, 4 times of each "
        "node",
    )
    tensor_overrides: tuple[str, ...] = _setting(
        (),
        "GRAPH_TENSOR_OVERRIDES",
        _rules,
        "rules regex=backend, one a line or separated by ';'; the first match wins",
    )
    op_offload_min_batch: int = _setting(
        OFFLOAD_BATCH,
        "GRAPH_OP_OFFLOAD_MIN_BATCH",
        _batch,
        "batch at which an op over host weights is offloaded to a device; auto: where that measured faster",
    )
    threads: int = _setting(0, "GRAPH_THREADS", _count, "threads of the CPU backend; 0: as many as the process may use")
    fuse: int = _setting(1, "GRAPH_FUSE", _count, "0 runs every node by itself, 1 lets backends run several as one")
    check_numerics: int = _setting(
        0,
        "GRAPH_CHECK_NUMERICS",
        _count,
        "1 stops at the first node that yields inf or NaN, 2 also at one whose result the reference denies",
    )

    @classmethod
    def from_env(cls, environment: Mapping[str, str] | None = None, **keywords: Any) -> Settings:
        """Settings from the environment, with keywords on top; a keyword of None is as if not given.

        Raises: SettingsError that names the variable and its value, or an unknown keyword.
        """
        environment = os.environ if environment is None else environment
        known = {item.name: item.metadata for item in fields(cls)}
        values: dict[str, Any] = {}
        for name, about in known.items():
            text = environment.get(about["variable"], "")
            if text:
                try:
                    values[name] = about["parse"](text)
                except ValueError as error:
                    raise SettingsError(
                        f'[settings] {about["variable"]}="{text}" cannot be read ({error}): {about["meaning"]}'
                    ) from error
        unknown = set(keywords) - set(known)
        if unknown:
            raise SettingsError(f"[settings] unknown: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
        return replace(cls(**values), **{key: value for key, value in keywords.items() if value is not None})

    @property
    def thread_count(self) -> int:
        """Threads to use: the setting, or the processors that this process may run on."""
        if self.threads:
            return self.threads
        affinity = getattr(os, "sched_getaffinity", None)
        return len(affinity(0)) if affinity else os.cpu_count() or 1
