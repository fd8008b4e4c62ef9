"""The options about where things run, which all commands that load a model share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphrt.cli import output
from graphrt.cli.options import given

if TYPE_CHECKING:
    from graphrt.scheduler import Scheduler

Where = dict[str, Any]  # keywords of graphrt.load: backends, overrides, node_overrides, gpu_layers

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


def with_placement(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command these options where its signature has `where`, which it gets them as."""
    shared = inspect.signature(placement, eval_str=True).parameters
    own = inspect.signature(command, eval_str=True)
    parameters: list[inspect.Parameter] = []
    for parameter in own.parameters.values():
        parameters += shared.values() if parameter.name == "where" else [parameter]

    @wraps(command)
    def run(**options: Any) -> None:
        where = placement(**{name: options.pop(name) for name in shared})
        command(where=where, **options)

    # What typer reads: Python's own order of parameters with and without defaults holds for keywords no longer.
    keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    run.__signature__ = own.replace(parameters=keywords)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def placement(
    *,
    overrides: Overrides = None,
    override_file: OverrideFile = None,
    override_node: OverrideNode = None,
    cpu_moe: CpuMoe = False,
    n_cpu_moe: CpuMoeLayers = None,
    device: Device = None,
    gpu_layers: GpuLayers = None,
) -> Where:
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


def warn_of_placement(scheduler: Scheduler) -> None:
    """Tell of each override rule that placed nothing, and of weights that are copied at every run."""
    for rule in scheduler.unmatched():
        output.warning(f'the override "{rule}" matched nothing; graphrt inspect shows the names')
    for weights in scheduler.moving():
        output.warning(weights)
