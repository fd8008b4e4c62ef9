"""Arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphrt.cli import output

if TYPE_CHECKING:
    from graphrt.scheduler import Scheduler

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
        help="Put the weights whose names match on a backend; REGEX@prompt and REGEX@decode hold in one phase only. "
        "Repeatable, the first rule that matches wins.",
    ),
]
OverrideFile = Annotated[
    Path | None,
    typer.Option("--override-file", metavar="FILE", help="More such rules, one a line, after those of -ot."),
]
OverrideNode = Annotated[
    list[str] | None,
    typer.Option(
        "--override-node",
        metavar="REGEX=BACKEND",
        help="Run the nodes whose names, or whose ops' names, match on a backend; repeatable.",
    ),
]
CpuMoe = Annotated[bool, typer.Option("--cpu-moe", help="Keep the weights of all experts on the CPU.")]
CpuMoeLayers = Annotated[
    int | None,
    typer.Option("--n-cpu-moe", min=0, help="Keep the experts' weights of the first so many layers on the CPU."),
]
Device = Annotated[
    list[str] | None,
    typer.Option("--device", metavar="NAME", help="A backend to use before the CPU; repeatable."),
]
GpuLayers = Annotated[
    int | None,
    typer.Option(
        "-ngl",
        "--gpu-layers",
        min=0,
        help="Put the output and the last layers on the first device: so many in all, the output counted as one.",
    ),
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


def placement(
    *,
    overrides: Sequence[str] | None,
    override_file: Path | None,
    override_node: Sequence[str] | None,
    cpu_moe: bool,
    n_cpu_moe: int | None,
    device: Sequence[str] | None,
    gpu_layers: int | None,
) -> dict[str, Any]:
    """The options about where things run, as keywords of graphrt.load.

    Rules are tried in this order: -ot, the file's, those of the experts, GRAPH_TENSOR_OVERRIDES, -ngl.
    """
    from graphrt import Settings
    from graphrt import overrides as rules
    from graphrt.scheduler import DEFAULT_BACKENDS

    listed = [*(overrides or ()), *(rules.from_file(override_file) if override_file else ())]
    if cpu_moe:
        listed.append(rules.cpu_moe())
    if n_cpu_moe:
        listed.append(rules.n_cpu_moe(n_cpu_moe))
    listed += Settings.from_env().tensor_overrides
    backends = [*(device or ()), *(name for name in DEFAULT_BACKENDS if name not in (device or ()))]
    return given(backends=backends, overrides=listed, node_overrides=override_node, gpu_layers=gpu_layers)


def counts(option: str, text: str) -> list[int]:
    """The whole numbers of a list such as 128,512."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise typer.BadParameter(f"{text!r} is not a list of whole numbers such as 128,512", param_hint=option)
    return [int(part) for part in parts]


def warn_of_placement(scheduler: Scheduler) -> None:
    """Tell of each override rule that placed nothing, and of weights that are copied at every run."""
    for rule in scheduler.unmatched():
        output.warning(f'the override "{rule}" matched nothing; graphrt inspect shows the names')
    for weights in scheduler.moving():
        output.warning(weights)


def given(**options: Any) -> dict[str, Any]:
    """The options that the person gave, for a function that has defaults of its own for the others."""
    return {name: value for name, value in options.items() if value is not None}
