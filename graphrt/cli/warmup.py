"""`graphrt warmup`: compile ahead what models need, so that their first run starts at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphrt.cli import output
from graphrt.cli.options import ContextSize, KCache, Mla, Threads, UBatchSize, given
from graphrt.cli.placement import Where, with_placement
from graphrt.cli.reading import Repack

if TYPE_CHECKING:
    from graphrt.graph import Graph
    from graphrt.models.context import Context


@with_placement
def warmup(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODEL]…", help="GGUF files, or models that come along; none: all that come along."),
    ] = None,
    cache_types: Annotated[
        list[str] | None,
        typer.Option("--cache-type", metavar="DTYPE", help="Element type of the KV cache; repeatable; f16 if none."),
    ] = None,
    ctx_size: ContextSize = None,
    ubatch: UBatchSize = None,
    threads: Threads = None,
    mla: Mla = None,
    k_cache: KCache = None,
    repack: Repack = False,
    *,
    where: Where,
) -> None:
    """Compile the kernels that models need for prompts, small batches and single tokens.

    They are kept on disk, and compiled anew where graphrt, Numba or the processor changes. Give the options that the
    model will be used with.

    [bold]graphrt warmup[/]
    [bold]graphrt warmup DeepSeek-V2-Lite.gguf --cache-type f16 --cache-type q8_0[/]
    """
    from graphrt.kept import cache_root
    from graphrt.models.model import NAMES

    options = {**where, **given(n_ctx=ctx_size, n_ubatch=ubatch, threads=threads, mla=mla, k_cache=k_cache)}
    options["repack"] = repack
    table = output.table("model", "cache", ">kernels", ">time")
    for model in models or NAMES:
        for cache_type in cache_types or ("f16",):
            start = time.perf_counter()
            with output.step_progress(f"compiling for {model}") as progress:
                kernels = _warm_up(model, progress, {**options, "cache_type": cache_type})
            table.add_row(model, cache_type, str(kernels), f"{time.perf_counter() - start:.1f} s")
    table.caption = f"kept in {cache_root()}"
    output.stdout().print(table)


def _warm_up(model: str, progress: Callable[[int, int, str], None], options: dict[str, Any]) -> int:
    """Returns the number of kernels that the model needs."""
    from graphrt import load

    with load(model, **options) as loaded:
        context = loaded.new_context()
        kernels: int = context.scheduler.warm_up(_graphs(context), progress)
    return kernels


def _graphs(context: Context) -> Iterator[Graph]:
    """One of each kind: kernels change with the number of tokens, by powers of two or more rarely."""
    size, ubatch = context.size, min(context.ubatch, context.size)
    for tokens in sorted({ubatch, *(1 << i for i in range(ubatch.bit_length()))}):
        yield context.graph(tokens, 1, size)
    for tokens in {1, ubatch}:
        yield context.graph(tokens, tokens, context.cells.visible_with(context.cells.find(tokens)))
