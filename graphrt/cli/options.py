"""Arguments and options that several commands share."""

from __future__ import annotations

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
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "-ot",
        "--override-tensor",
        metavar="REGEX=BACKEND",
        help="Put the weights whose names match on a backend; repeatable, the first rule that matches wins.",
    ),
]
Attention = Annotated[
    str | None,
    typer.Option(
        "--attention", metavar="NAME", help="Variant of DeepSeek's attention: naive or absorbed.", show_default="auto"
    ),
]
CacheType = Annotated[
    str | None,
    typer.Option(
        "--cache-type", metavar="DTYPE", help="Element type of the KV cache: f32, f16, bf16, q8_0 …", show_default="f16"
    ),
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


def given(**options: Any) -> dict[str, Any]:
    """The options that the person gave, for a function that has defaults of its own for the others."""
    return {name: value for name, value in options.items() if value is not None}
