"""`graphrt tune`: measure how fast attention is here, and show what mla=auto then chooses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from graphrt.cli import output
from graphrt.cli.options import CacheType, ModelArgument, Threads, given

if TYPE_CHECKING:
    from rich.table import Table

    from graphrt.models.mla_cost import CostModel, Rates

TOKENS = (1, 4, 16, 32, 64, 96, 128, 192, 256, 512, 2048)
CONTEXTS = (512, 2048, 8192, 32768, 131072)


def tune(model: ModelArgument, cache_type: CacheType = None, threads: Threads = None) -> None:
    """Measure the rates that --mla auto goes by anew, and show the choices that follow.

    They are measured once by themselves, too; do it again after the machine was busy then.

    [bold]graphrt tune DeepSeek-V2-Lite.gguf --cache-type q8_0 -t 8[/]
    """
    from graphrt import dtypes, load
    from graphrt.models.mla import LatentAttention
    from graphrt.models.mla_choice import CLOSE, Kind
    from graphrt.models.mla_cost import CostModel
    from graphrt.models.mla_rates import MeasuredRates

    loaded = load(model, threads=threads, **given(cache_type=cache_type))
    attention = loaded.decoder.layers[0].attention
    if not isinstance(attention, LatentAttention):
        raise typer.BadParameter(f"{loaded.file.architecture} models have one way to attend only", param_hint="MODEL")
    heads, cache = attention.chooser.heads, dtypes.get(loaded.options.cache_type)
    kind = Kind.of(heads, attention.expansion, cache)
    with output.status(f"measuring {kind}"):
        rates = MeasuredRates(loaded.scheduler).measure(loaded.scheduler.home("cache_latent-0"), kind)
    console = output.stdout()
    console.print(str(kind), style="bold")
    console.print(_rates(rates))
    console.print("milliseconds of a layer: the way that auto takes, and the other one")
    console.print(_choices(CostModel(heads, cache.row_bytes(heads.rank + heads.rope), rates)))
    console.print(
        f"where they are less than {CLOSE:g} times apart, auto tries both at the layer's size and keeps the result"
    )


def _rates(rates: Rates) -> Table:
    table = output.table("rows", ">GFLOP/s")
    for name, curve in (("absorbed", rates.absorb), ("expanded", rates.expand), ("queries, values", rates.products)):
        for rows, rate in curve.points:
            table.add_row(f"{name}, {rows:.0f}", f"{rate / 1e9:.1f}")
    table.caption = f"cells are read at {rates.read / 1e9:.1f} GB/s"
    return table


def _choices(model: CostModel) -> Table:
    from graphrt.models.mla_cost import NAMES

    table = output.table("tokens", *(f"context {cells}" for cells in CONTEXTS))
    for tokens in TOKENS:
        row = []
        for cells in CONTEXTS:
            times = {NAMES[way]: 1e3 * model.seconds(way, tokens, cells) for way in NAMES}
            chosen = NAMES[model.faster(tokens, cells)]
            other = next(name for name in times if name != chosen)
            row.append(f"{chosen} {times[chosen]:.3g} ({times[other]:.3g})" if tokens <= cells else "")
        table.add_row(str(tokens), *row)
    return table
