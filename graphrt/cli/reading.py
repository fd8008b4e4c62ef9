"""`--no-mmap` and `--repack`: a model's weights read into memory, with a bar, before a command begins."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphrt.cli import output

if TYPE_CHECKING:
    from graphrt.models.model import Model

NoMmap = Annotated[
    bool,
    typer.Option(
        "--no-mmap",
        help="Read the weights into memory in place of mapping the file: slower to start, some per cent faster then.",
    ),
]
Repack = Annotated[
    bool,
    typer.Option(
        "--repack",
        help="Read the weights into memory, and interleave there the quantized ones that stay on the host for the "
        "CPU's kernels, which read them faster so; they are not offloaded to a device then.",
    ),
]


def load_with_bar(model: str, no_mmap: bool, repack: bool, **options: Any) -> Model:
    """The model that `graphrt.load` gives; a bar shows how much of it is read into memory, if it is."""
    from graphrt.models.model import load

    if not (no_mmap or repack):
        return load(model, **options)
    with output.bytes_progress(f"reading {Path(model).name}") as progress:
        return load(model, mmap=False, repack=repack, progress=progress, **options)
