"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

ModelArgument = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="A GGUF file, or a model that comes along: tiny-deepseek2, tiny-mixtral."),
]
Threads = Annotated[
    int | None,
    typer.Option("-t", "--threads", min=1, help="Threads of the CPU backend.", show_default="all processors"),
]
ContextSize = Annotated[
    int | None,
    typer.Option("-c", "--ctx-size", min=1, help="Tokens that the context holds.", show_default="the model's"),
]
Mla = Annotated[
    str | None,
    typer.Option(
        "--mla",
        metavar="NAME",
        help="How DeepSeek models attend: naive, absorbed, pp-opt, flashmla2, or auto: the faster one for each ubatch.",
        show_default="auto",
    ),
]
KCache = Annotated[
    str | None,
    typer.Option(
        "--k-cache",
        metavar="KIND",
        help="Keep keys roped, or unroped: attention then rotates them, and shifts of the context change no key.",
        show_default="roped",
    ),
]
CacheType = Annotated[
    str | None,
    typer.Option(
        "--cache-type", metavar="DTYPE", help="Element type of the KV cache: f32, f16, bf16, q8_0 …", show_default="f16"
    ),
]
KVFile = Annotated[
    Path | None,
    typer.Option(
        "--kv-file",
        metavar="FILE",
        help="Keep the KV cache in this file, mapped into memory; what it holds of the prompt is not run again.",
    ),
]
UBatchSize = Annotated[
    int | None,
    typer.Option("-ub", "--ubatch", min=1, help="Tokens of a prompt in one run of the graph.", show_default="512"),
]
Verbose = Annotated[
    int,
    typer.Option(
        "-v",
        "--verbose",
        count=True,
        help="Print how graphs are placed: -v splits, -vv every node with its backend and why, -vvv rejections.",
        show_default=False,
    ),
]


def counts(option: str, text: str) -> list[int]:
    """The whole numbers of a list such as 128,512."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise typer.BadParameter(f"{text!r} is not a list of whole numbers such as 128,512", param_hint=option)
    return [int(part) for part in parts]


def given(**options: Any) -> dict[str, Any]:
    """The options that the person gave, for a function that has defaults of its own for the others."""
    return {name: value for name, value in options.items() if value is not None}
