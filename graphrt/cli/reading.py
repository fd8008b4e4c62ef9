"""`--no-mmap`: a model's weights read into memory, with a bar, before a command begins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from graphrt.cli import output

if TYPE_CHECKING:
    from graphrt.models.gguf_file import GGUFFile

NoMmap = Annotated[
    bool,
    typer.Option(
        "--no-mmap",
        help="Read the weights into memory in place of mapping the file: slower to start, some per cent faster then.",
    ),
]


def to_load(model: str, no_mmap: bool) -> str | GGUFFile:
    """What `graphrt.load` is given: the model as it was named, or its file once it is read."""
    if not no_mmap:
        return model
    from graphrt.models.gguf_file import GGUFFile
    from graphrt.models.gguf_memory import in_memory
    from graphrt.models.model import locate

    file = GGUFFile.open(locate(model))
    with output.bytes_progress(f"reading {file.path.name}") as progress:
        return in_memory(file, progress)
