"""The models that are measured on the CPU.

Both are cut to a few layers and a small vocabulary: all layers are alike, and the output would count too much.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

TYPES = ("bf16", "q8_0", "q4_0", "q4_k_m")
VOCABULARY = 4096


@dataclass(frozen=True)
class Subject:
    """A synthesised model.

    Args:
        name: that tables show.
        preset, layers: what `synthesise` makes it of.
    """

    name: str
    preset: str
    layers: int

    def file(self, file_type: str, folder: Path) -> Path:
        """Its GGUF file in that folder, which is made if it is not there."""
        path = folder / f"{self.preset}-{self.layers}-layers-{file_type}.gguf"
        if not path.exists():
            from graphrt.models.synth import synthesise

            folder.mkdir(parents=True, exist_ok=True)
            synthesise(self.preset, path, layers=self.layers, dtype=file_type, vocabulary=VOCABULARY)
        return path


SUBJECTS = (Subject("V2-Lite", "deepseek-v2-lite", 4), Subject("Mixtral", "mixtral-8x7b", 2))
