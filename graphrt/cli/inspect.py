"""`graphrt inspect`: what is in a GGUF file, and the graph that the model makes of it."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphrt.cli import output
from graphrt.cli.options import (
    ContextSize,
    KCache,
    Mla,
    ModelArgument,
    given,
)
from graphrt.cli.placement import Where, warn_of_placement, with_placement

if TYPE_CHECKING:
    from rich.table import Table

    from graphrt.models.gguf_file import FileTensor, GGUFFile
    from graphrt.schedule import Schedule

LONGEST_VALUE = 88
VALUES_SHOWN = 6


@with_placement
def inspect(
    model: ModelArgument,
    match: Annotated[
        str, typer.Option("--match", metavar="REGEX", help="Show only the metadata keys and tensors that match.")
    ] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="Write metadata and tensors, or with --graph the schedule, as JSON.")
    ] = False,
    graph: Annotated[bool, typer.Option("--graph", help="Show the model's graph, node by node, instead.")] = False,
    dot: Annotated[bool, typer.Option("--dot", help="Write the model's graph in Graphviz's DOT instead.")] = False,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write the model's graph as a page for the browser instead."),
    ] = None,
    verbose: Annotated[
        int,
        typer.Option("-v", "--verbose", count=True, help="With --graph, also why other backends were passed over."),
    ] = 0,
    tokens: Annotated[int, typer.Option("-n", "--tokens", min=1, help="Tokens that the graph is built for.")] = 1,
    ctx_size: ContextSize = None,
    mla: Mla = None,
    k_cache: KCache = None,
    *,
    where: Where,
) -> None:
    """Show a model's metadata, tensors and sizes, or the graph that it makes.

    [bold]graphrt inspect model.gguf --match ffn_.*_exps[/]   the experts' tensors
    [bold]graphrt inspect tiny-mixtral --graph[/]             every node, its backend, and why
    [bold]graphrt inspect tiny-mixtral --html graph.html[/]   the same to click on, in any browser
    [bold]graphrt inspect model.gguf --graph -n 512 --device sim -ngl 99 --cpu-moe[/]
    [bold]graphrt inspect tiny-mixtral --dot | dot -Tsvg > graph.svg[/]
    """
    if graph or dot or html:
        schedule = _schedule(model, tokens, **where, **given(mla=mla, k_cache=k_cache, n_ctx=ctx_size))
        if html:
            _write_page(schedule, html, f"{Path(model).name}, {tokens} token{'' if tokens == 1 else 's'}")
        else:
            print(_as_text(schedule, dot=dot, as_json=as_json, level=3 if verbose else 2))
        return
    from graphrt.models.gguf_file import GGUFFile
    from graphrt.models.model import locate

    file = GGUFFile.open(locate(model))
    wanted = _pattern(match)
    metadata = {key: value for key, value in file.metadata.items() if wanted.search(key)}
    tensors = [tensor for tensor in file.tensors.values() if wanted.search(tensor.name)]
    if as_json:
        print(json.dumps(_as_json(file, metadata, tensors), indent=2, ensure_ascii=False))
        return
    console = output.stdout()
    architecture = file.metadata.get("general.architecture", "no architecture")
    console.print(f"{file.path.name}: {architecture}, GGUF version {file.version}", style="bold")
    console.print(f"{len(file.tensors)} tensors, {output.size(file.size)}; shapes are slowest axis first")
    for table in (_metadata_table(metadata), _tensor_table(tensors), _type_table(tensors)):
        if table.row_count:
            console.print(table)


def _schedule(model: str, tokens: int, **options: Any) -> Schedule:
    """The schedule of the model's graph for so many tokens."""
    from graphrt import load

    context = load(model, **options).new_context()
    cells = context.cells.visible_with(context.cells.find(tokens))
    made: Schedule = context.scheduler.schedule(context.graph(tokens, rows=1, cells=cells))
    warn_of_placement(context.scheduler)
    return made


def _as_text(schedule: Schedule, *, dot: bool, as_json: bool, level: int) -> str:
    from graphrt.dot import dot as as_dot
    from graphrt.explain import describe

    if dot:
        return as_dot(schedule)
    return schedule.explain().as_json() if as_json else describe(schedule, level)


def _write_page(schedule: Schedule, path: Path, title: str) -> None:
    from graphrt.html import page

    try:
        path.write_text(page(schedule, title), encoding="utf-8")
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be written: {error.strerror}", param_hint="--html") from error
    output.stderr().print(f"wrote {path}; open it in a browser", highlight=False)


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise typer.BadParameter(f"{text!r} is not a regular expression: {error}", param_hint="--match") from error


def _metadata_table(metadata: dict[str, Any]) -> Table:
    table = output.table("key", "value")
    for key, value in metadata.items():
        table.add_row(key, _short(value))
    return table


def _tensor_table(tensors: list[FileTensor]) -> Table:
    table = output.table("tensor", "type", "shape", ">size")
    for tensor in tensors:
        table.add_row(tensor.name, tensor.type_name, " × ".join(map(str, tensor.shape)), output.size(tensor.nbytes))
    return table


def _type_table(tensors: list[FileTensor]) -> Table:
    by_type = defaultdict(list)
    for tensor in tensors:
        by_type[tensor.type_name].append(tensor)
    table = output.table("type", ">tensors", ">elements", ">size")
    for name, members in sorted(by_type.items(), key=lambda item: -sum(tensor.nbytes for tensor in item[1])):
        elements = sum(prod(tensor.shape) for tensor in members)
        table.add_row(name, str(len(members)), f"{elements:,}", output.size(sum(tensor.nbytes for tensor in members)))
    return table


def _short(value: Any) -> str:
    """A value on one line; of an array, its length and first elements."""
    if isinstance(value, str):
        text = repr(value)[1:-1]
        return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}… ({len(value)} characters)"
    if isinstance(value, bool | int | float):
        return f"{value:g}" if isinstance(value, float) else str(value)
    first = ", ".join(repr(item) if isinstance(item, str) else str(item) for item in value[:VALUES_SHOWN])
    return f"[{first}{', …' if len(value) > VALUES_SHOWN else ''}] ({len(value)} values)"


def _as_json(file: GGUFFile, metadata: dict[str, Any], tensors: list[FileTensor]) -> dict[str, Any]:
    return {
        "path": str(file.path),
        "size": file.size,
        "version": file.version,
        "metadata": {key: value.tolist() if hasattr(value, "tolist") else value for key, value in metadata.items()},
        "tensors": [
            {
                "name": tensor.name,
                "type": tensor.type_name,
                "shape": tensor.shape,
                "offset": tensor.offset,
                "nbytes": tensor.nbytes,
            }
            for tensor in tensors
        ],
    }
