"""`graphrt synth`: a model of a known shape with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graphrt.cli import output
from graphrt.cli.convert import Dialect


def synth(
    preset: Annotated[
        str, typer.Argument(help="llama-7b, mixtral-8x7b, deepseek-v2-lite, -v2, -v3, tiny-…; a wrong name lists all.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT.gguf", help="The file to write.")],
    layers: Annotated[
        int | None, typer.Option("--layers", min=1, help="Number of layers.", show_default="the model's")
    ] = None,
    vocabulary: Annotated[
        int | None, typer.Option("--vocabulary", min=1, help="Number of tokens.", show_default="the model's")
    ] = None,
    weight_type: Annotated[
        str,
        typer.Option(
            "--type", metavar="TYPE", help="A file type as llama-quantize mixes it (q4_k_m, q4_0), or a dtype for all."
        ),
    ] = "q8_0",
    tensor_types: Annotated[
        list[str] | None,
        typer.Option(
            "--tensor-type",
            metavar="REGEX=DTYPE",
            help="Type of the weights whose names match; repeatable, the first rule that matches wins.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Equal seeds give equal files.")] = 0,
    dialect: Annotated[
        Dialect, typer.Option("--dialect", help="DeepSeek: attn_k_b and attn_v_b (mla), attn_kv_b (legacy), or both.")
    ] = Dialect.mla,
) -> None:
    """Write a GGUF file of a known shape with random weights, to measure models that are too large to download.

    [bold]graphrt synth deepseek-v2-lite lite.gguf --layers 4 --vocabulary 4096 --type q4_k_m[/]
    [bold]graphrt synth mixtral-8x7b mix.gguf --layers 2 --type q4_0 --tensor-type "ffn_down_exps=q6_k"[/]
    """
    from graphrt.models.synth import synthesise

    rules = [_rule(text) for text in tensor_types or []]
    with output.bytes_progress(f"writing {out.name}") as progress:
        path = synthesise(
            preset,
            out,
            layers=layers,
            dtype=weight_type,
            tensor_types=rules,
            seed=seed,
            progress=progress,
            dialect=dialect.value,
            vocabulary=vocabulary,
        )
    output.stderr().print(f"{output.escape(str(path))}: {output.size(path.stat().st_size)}", soft_wrap=True)


def _rule(text: str) -> tuple[str, str]:
    pattern, equals, dtype = text.rpartition("=")
    if not equals or not pattern:
        raise typer.BadParameter(f"{text!r} is not of the form REGEX=DTYPE", param_hint="--tensor-type")
    return pattern, dtype
