"""`graphrt convert`: a Hugging Face folder becomes a GGUF file."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from graphrt.cli import output


class WeightType(StrEnum):
    """What weights may be stored in."""

    f32 = "f32"
    f16 = "f16"
    bf16 = "bf16"
    q8_0 = "q8_0"


class Dialect(StrEnum):
    """How a DeepSeek file may hold the up-projection of keys and values."""

    mla = "mla"
    legacy = "legacy"
    both = "both"


def convert(
    folder: Annotated[
        Path, typer.Argument(metavar="IN_FOLDER", help="Holds config.json, safetensors and a tokenizer.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT.gguf", help="The file to write.")],
    weight_type: Annotated[WeightType, typer.Option("--type", help="Type of the large weights.")] = WeightType.q8_0,
    dialect: Annotated[
        Dialect,
        typer.Option("--dialect", help="DeepSeek: attn_k_b and attn_v_b (mla), attn_kv_b (legacy), or both."),
    ] = Dialect.mla,
) -> None:
    """Convert a Hugging Face folder (Llama, Mistral, Mixtral, DeepSeek-V2, DeepSeek-V3) to a GGUF file.

    [bold]graphrt convert DeepSeek-V2-Lite-Chat v2-lite.gguf --type q8_0[/]
    """
    from graphrt.models.convert import convert_folder

    with output.bytes_progress(f"writing {out.name}") as progress:
        report = convert_folder(folder, out, weight_type.value, progress, dialect.value)
    console = output.stderr()
    for note in report.notes:
        console.print(f"[yellow]note:[/] {output.escape(note)}", soft_wrap=True)
    size = output.size(report.size)
    console.print(
        f"{output.escape(str(report.path))}: {report.architecture}, {report.tensors} tensors, {size}", soft_wrap=True
    )
