"""`graphrt plan`: what a model will take in memory, before it is loaded or even there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphrt.cli import output
from graphrt.cli.options import (
    CacheType,
    KCache,
    Mla,
    UBatchSize,
    counts,
    given,
)
from graphrt.cli.placement import Where, warn_of_placement, with_placement

if TYPE_CHECKING:
    from rich.table import Table

    from graphrt.models.gguf_file import GGUFFile
    from graphrt.models.memory_use import MemoryUse
    from graphrt.models.model import Model

PEAK_SHOWN = 6


@with_placement
def plan(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="A GGUF file; or give --preset.")] = None,
    preset: Annotated[
        str | None,
        typer.Option("--preset", help="A known shape in place of a file: deepseek-v2-lite, -v2, -v3, mixtral-8x7b …"),
    ] = None,
    weight_type: Annotated[
        str, typer.Option("--type", metavar="DTYPE", help="Type of a preset's large weights.")
    ] = "q8_0",
    layers: Annotated[
        int | None, typer.Option("--layers", min=1, help="Layers of a preset.", show_default="the model's")
    ] = None,
    ctx: Annotated[
        str,
        typer.Option("-c", "--ctx", "--ctx-size", metavar="TOKENS", help="Contexts, as 4096 or 2048,32768,131072."),
    ] = "4096",
    ubatch: UBatchSize = None,
    mla: Mla = None,
    k_cache: KCache = None,
    cache_type: CacheType = None,
    *,
    where: Where,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write JSON: an object; of several contexts an array of them.")
    ] = False,
) -> None:
    """Show what a model will take: weights, KV cache, compute buffer, and what fills that at its peak.

    It needs no weights and allocates nothing of their size. The compute buffer is the larger one of a full ubatch of a
    prompt and of one decoded token, with the logits of one token, over a full context.

    [bold]graphrt plan model.gguf -c 32768 --cache-type q8_0[/]
    [bold]graphrt plan --preset deepseek-v3 --type q4_k -c 2048,131072[/]
    [bold]graphrt plan --preset mixtral-8x7b --device sim -ngl 99 --cpu-moe --json[/]
    """
    sizes = counts("--ctx", ctx)
    file = _file(model, preset, weight_type, layers)
    from graphrt import load
    from graphrt.models.memory_use import memory_use

    options = {**where, **given(mla=mla, k_cache=k_cache, cache_type=cache_type, n_ubatch=ubatch)}
    models = [load(file, n_ctx=size, **options) for size in sizes]
    found = [memory_use(each.new_context()) for each in models]
    warn_of_placement(models[0].scheduler)
    if as_json:
        told = [_as_json(models[0], use) for use in found]
        print(json.dumps(told[0] if len(told) == 1 else told, indent=2))
        return
    console = output.stdout()
    console.print(_title(models[0]), style="bold")
    console.print(_size_table(found))
    for use in found[-1:]:
        console.print(f"biggest at the peak, context {use.n_ctx:,}")
        console.print(_peak_table(use))


def _file(model: str | None, preset: str | None, weight_type: str, layers: int | None) -> GGUFFile:
    """The GGUF file, or the description of a preset's."""
    from graphrt.models.gguf_file import GGUFFile
    from graphrt.models.model import locate
    from graphrt.models.synth import describe

    if model is not None and preset is None:
        return GGUFFile.open(locate(model))
    if model is None and preset is not None:
        return describe(preset, layers=layers, dtype=weight_type)
    raise typer.BadParameter("give either a GGUF file or --preset", param_hint="MODEL")


def _title(model: Model) -> str:
    options = model.options
    return (
        f"{model.file.path.name}: {model.file.architecture}, {len(model.decoder.layers)} layers, "
        f"weights {output.size(model.file.size)}, cache {options.cache_type}, ubatch {options.n_ubatch}"
    )


def _size_table(found: list[MemoryUse]) -> Table:
    table = output.table(">context", "backend", ">weights", ">KV cache", ">compute buffer", ">prompt", ">decode")
    for use in found:
        for name, compute in use.compute.items():
            held = (use.weights[name], use.kv_cache[name], compute, use.prompt.compute[name], use.decode.compute[name])
            table.add_row(f"{use.n_ctx:,}", name, *map(output.size, held))
    return table


def _peak_table(use: MemoryUse) -> Table:
    table = output.table("graph", "backend", "tensor", ">size")
    for phase in (use.prompt, use.decode):
        title = f"{phase.phase}, {phase.tokens} token{'' if phase.tokens == 1 else 's'}"
        for backend, held in phase.peak.items():
            for name, nbytes in held[:PEAK_SHOWN]:
                table.add_row(title, backend, name, output.size(nbytes))
    return table


def _as_json(model: Model, use: MemoryUse) -> dict[str, Any]:
    return {
        "model": model.file.path.name,
        "architecture": model.file.architecture,
        "n_ctx": use.n_ctx,
        "n_ubatch": model.options.n_ubatch,
        "cache_type": model.options.cache_type,
        "compute_buffer_bytes": use.compute,
        "kv_cache_bytes": use.kv_cache,
        "weight_bytes": use.weights,
        "cell_bytes": use.cells,
        "graphs": {
            phase.phase: {
                "tokens": phase.tokens,
                "compute_buffer_bytes": phase.compute,
                "peak": {
                    backend: [{"name": name, "bytes": nbytes} for name, nbytes in held]
                    for backend, held in phase.peak.items()
                },
            }
            for phase in (use.prompt, use.decode)
        },
    }
