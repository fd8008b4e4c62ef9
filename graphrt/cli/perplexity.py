"""`graphrt perplexity`: how well a model foretells a text, and how far it is from another model on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphrt.cli import output
from graphrt.cli.options import (
    CacheType,
    KCache,
    Mla,
    ModelArgument,
    Threads,
    UBatchSize,
    given,
)
from graphrt.cli.placement import Where, warn_of_placement, with_placement

if TYPE_CHECKING:
    from rich.table import Table

    from graphrt.models.divergence import Divergence
    from graphrt.models.log_probabilities import LogProbabilities
    from graphrt.models.model import Model
    from graphrt.models.perplexity import Estimate, Perplexity

DEFAULT_CHUNK = 512
QUANTILES = {"maximum": 1.0, "99.9 %": 0.999, "99 %": 0.99, "95 %": 0.95, "median": 0.5, "5 %": 0.05, "minimum": 0.0}


@with_placement
def perplexity(
    model: ModelArgument,
    file: Annotated[
        Path | None, typer.Option("-f", "--file", metavar="TEXT", help="The text, in UTF-8, with two chunks or more.")
    ] = None,
    ctx_size: Annotated[
        int | None,
        typer.Option("-c", "--ctx-size", min=4, help="Tokens of a chunk.", show_default=str(DEFAULT_CHUNK)),
    ] = None,
    chunks: Annotated[
        int | None, typer.Option("--chunks", min=1, help="Stop after so many chunks.", show_default="all of the text")
    ] = None,
    kl_base: Annotated[
        Path | None,
        typer.Option("--kl-base", metavar="FILE", help="Save the log-probabilities, for later comparisons with --kl."),
    ] = None,
    kl: Annotated[
        Path | None,
        typer.Option("--kl", metavar="FILE", help="Compare with saved log-probabilities; the text comes from there."),
    ] = None,
    ubatch: UBatchSize = None,
    threads: Threads = None,
    mla: Mla = None,
    k_cache: KCache = None,
    cache_type: CacheType = None,
    *,
    where: Where,
    as_json: Annotated[bool, typer.Option("--json", help="Write the figures as JSON.")] = False,
) -> None:
    """Measure a model's perplexity over a text as llama-perplexity does: chunks of -c tokens, the second half scored.

    --kl-base and --kl show what quantization, a cache type or another setting costs: the first saves a model's
    probabilities, 16 bits for each token of the vocabulary, the second holds another model's against them. The file is
    llama-perplexity's, so either program can read the other's.

    [bold]graphrt perplexity model-f16.gguf -f wiki.test.raw[/]
    [bold]graphrt perplexity model-f16.gguf -f wiki.test.raw --chunks 32 --kl-base base.kld[/]
    [bold]graphrt perplexity model-q4_0.gguf --kl base.kld --cache-type q8_0[/]
    """
    options = {**where, **given(mla=mla, k_cache=k_cache, cache_type=cache_type, n_ubatch=ubatch, threads=threads)}
    if kl is not None:
        if file or ctx_size or chunks or kl_base:
            raise typer.BadParameter("the text and its chunks come from the file, so -f, -c, --chunks have no place")
        _show_divergence(*_compare(model, kl, options), as_json=as_json)
        return
    if file is None:
        raise typer.BadParameter("give a text with -f, or saved log-probabilities with --kl", param_hint="--file")
    text = _read(file)
    n_ctx = ctx_size or DEFAULT_CHUNK
    _show_perplexity(*_measure(model, text, n_ctx, chunks, kl_base, options), as_json=as_json)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{path} cannot be read: {error}", param_hint="--file") from error


def _measure(
    name: str, text: str, n_ctx: int, limit: int | None, save: Path | None, options: dict[str, Any]
) -> tuple[Model, Perplexity]:
    """The perplexity of a text; the log-probabilities go to `save`."""
    from graphrt import load
    from graphrt.models.perplexity import measure, tokens_of

    model = load(name, n_ctx=n_ctx, **options)
    tokens = tokens_of(model, text)
    with output.step_progress(f"{len(tokens):,} tokens") as progress:

        def show(done: int, total: int, estimate: Estimate) -> None:
            progress(done, total, f"PPL = {estimate}")

        found = measure(model, tokens, n_ctx=n_ctx, chunks=limit, save=save, progress=show)
    warn_of_placement(model.scheduler)
    if save is not None:
        output.stderr().print(f"wrote {save}: {output.size(save.stat().st_size)}", soft_wrap=True)
    return model, found


def _compare(name: str, path: Path, options: dict[str, Any]) -> tuple[Model, LogProbabilities, Divergence]:
    """A model's divergence from saved log-probabilities."""
    from graphrt import load
    from graphrt.models.divergence import compare
    from graphrt.models.log_probabilities import LogProbabilities

    base = LogProbabilities.open(path)
    model = load(name, n_ctx=base.tokens.shape[1], **options)
    with output.step_progress(path.name) as progress:

        def show(done: int, total: int, found: Divergence) -> None:
            progress(done, total, f"PPL = {found.perplexity}, KL divergence {found.mean_kl}")

        found = compare(model, base, progress=show)
    warn_of_placement(model.scheduler)
    return model, base, found


def _show_perplexity(model: Model, found: Perplexity, *, as_json: bool) -> None:
    estimate = found.estimate
    if as_json:
        told = {
            "model": str(model.file.path),
            "n_ctx": found.n_ctx,
            "chunks": len(found.losses),
            "tokens_scored": found.losses.size,
            "perplexity": estimate.value,
            "error": estimate.error,
        }
        print(json.dumps(told, indent=2))
        return
    print(f"{len(found.losses)} chunks of {found.n_ctx} tokens, {found.losses.size:,} scored")
    print(f"PPL = {estimate}")


def _show_divergence(model: Model, base: LogProbabilities, found: Divergence, *, as_json: bool) -> None:
    if as_json:
        told = {
            "model": str(model.file.path),
            "n_ctx": base.tokens.shape[1],
            "chunks": len(base.tokens),
            "tokens_scored": found.kl.size,
            **{name: {"value": each.value, "error": each.error} for name, each in _figures(found).items()},
            "correlation": found.correlation,
            "kl_quantiles": _quantiles(found.kl),
            "probability_change_quantiles": _quantiles(found.probability_change),
        }
        print(json.dumps(told, indent=2))
        return
    chunks, n_ctx = base.tokens.shape
    console = output.stdout()
    console.print(f"{chunks} chunks of {n_ctx} tokens, {found.kl.size:,} scored; the base is what was saved")
    console.print(_figure_table(found))
    console.print(_quantile_table(found))


def _figures(found: Divergence) -> dict[str, Estimate]:
    return {
        "perplexity": found.perplexity,
        "base_perplexity": found.base_perplexity,
        "log_ratio": found.log_ratio,
        "ratio": found.ratio,
        "kl_divergence": found.mean_kl,
        "probability_change": found.mean_change,
        "rms_probability_change": found.rms_change,
        "same_top": found.top_agreement,
    }


def _quantiles(values: Any) -> dict[str, float]:
    import numpy as np

    return {name: float(np.quantile(values, share)) for name, share in QUANTILES.items()}


def _figure_table(found: Divergence) -> Table:
    table = output.table("", ">mean", ">± error")
    for words, each in (
        ("PPL", found.perplexity),
        ("PPL of the base", found.base_perplexity),
        ("ln(PPL / PPL of the base)", found.log_ratio),
        ("PPL / PPL of the base", found.ratio),
        ("KL divergence", found.mean_kl),
    ):
        table.add_row(words, f"{each.value:.6f}", f"{each.error:.6f}")
    for words, each in (
        ("Δp", found.mean_change),
        ("RMS Δp", found.rms_change),
        ("same top token", found.top_agreement),
    ):
        table.add_row(words, f"{100 * each.value:.3f} %", f"{100 * each.error:.3f} %")
    table.add_row("correlation of ln PPL", f"{100 * found.correlation:.2f} %", "")
    return table


def _quantile_table(found: Divergence) -> Table:
    table = output.table("", ">KL divergence", ">Δp")
    kl, change = _quantiles(found.kl), _quantiles(found.probability_change)
    for name in QUANTILES:
        table.add_row(name, f"{kl[name]:.6f}", f"{100 * change[name]:.3f} %")
    return table
