"""The options of a model: how it attends, and what its cache holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from graphrt.errors import SettingsError

MLA_VARIANTS = ("auto", "naive", "absorbed", "pp-opt", "flashmla2")
K_CACHES = ("roped", "unroped")


@dataclass(frozen=True)
class ModelOptions:
    """The options of a model.

    Args:
        mla: how deepseek2 attends, one of MLA_VARIANTS (models/mla.py has what they do); None: auto. Other
            architectures have no such choice.
        cache_type: dtype of the KV cache: f32, f16, bf16, q8_0 or q4_0.
        k_cache: "roped" keeps keys as they are after rotation by their position; "unroped" as before it, and attention
            rotates them, so that a change of position changes no key.
        n_ubatch: the most tokens in one run of a graph.
        kv_file: a file to keep the cache of the model's first context in, mapped into memory; one that is there is gone
            on from.
    Raises: SettingsError for a value out of range.
    """

    mla: str | None = None
    cache_type: str = "f16"
    k_cache: str = "roped"
    n_ubatch: int = 512
    kv_file: str | Path | None = None

    def __post_init__(self) -> None:
        if self.n_ubatch < 1:
            raise SettingsError(f"[load] n_ubatch is {self.n_ubatch}; it must be at least 1")
        if self.mla is not None and self.mla not in MLA_VARIANTS:
            raise SettingsError(f'[load] unknown mla "{self.mla}"; choose one of {", ".join(MLA_VARIANTS)}')
        if self.k_cache not in K_CACHES:
            raise SettingsError(f'[load] unknown k_cache "{self.k_cache}"; choose {" or ".join(K_CACHES)}')
