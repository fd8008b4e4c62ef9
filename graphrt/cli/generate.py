"""`graphrt generate`: a model writes text as it makes it."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphrt.cli import output
from graphrt.cli.options import (
    CacheType,
    ContextSize,
    KCache,
    KVFile,
    Mla,
    ModelArgument,
    Threads,
    Verbose,
    given,
)
from graphrt.cli.placement import Where, warn_of_placement, with_placement
from graphrt.cli.reading import NoMmap, Repack, load_with_bar

if TYPE_CHECKING:
    from graphrt.models.generation import Generation
    from graphrt.models.model import Model

INTERRUPTED = 130  # exit code after Ctrl-C: 128 + SIGINT

ENDINGS = {"running": "interrupt", "context full": "context full (with --context-shift it goes on)"}

Prompt = str | Sequence[Mapping[str, str]]


@with_placement
def generate(
    model: ModelArgument,
    prompt: Annotated[
        str | None, typer.Option("-p", "--prompt", help="Text to go on from; '-' reads it from standard input.")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Use the model's chat template; without --prompt, talk with it line by line.")
    ] = False,
    system: Annotated[str | None, typer.Option("--system", help="The chat's system message.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option("-n", "--max-tokens", min=0, help="Tokens to write at most.", show_default="no limit")
    ] = None,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="End before this text; repeatable.")] = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Never choose a token that ends the text, so that -n alone does.")
    ] = False,
    temperature: Annotated[
        float, typer.Option("--temperature", "--temp", help="Spread of the choice; 0 takes the most likely token.")
    ] = 0.8,
    top_k: Annotated[int, typer.Option("--top-k", help="Choose among so many of the likeliest tokens; 0: all.")] = 40,
    top_p: Annotated[float, typer.Option("--top-p", help="Choose among the likeliest with this probability.")] = 0.95,
    min_p: Annotated[float, typer.Option("--min-p", help="Drop tokens below this share of the likeliest.")] = 0.05,
    repeat_penalty: Annotated[
        float, typer.Option("--repeat-penalty", help="Makes recent tokens less likely; 1 changes nothing.")
    ] = 1.0,
    repeat_last: Annotated[int, typer.Option("--repeat-last", help="Recent tokens that the penalty looks at.")] = 64,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of the choices.", show_default="random")] = None,
    context_shift: Annotated[
        bool, typer.Option("--context-shift", help="When the context is full, forget half of it and go on.")
    ] = False,
    keep: Annotated[
        int, typer.Option("--keep", min=-1, help="Tokens of the prompt that are not forgotten then; -1: all of them.")
    ] = 0,
    ctx_size: ContextSize = None,
    threads: Threads = None,
    mla: Mla = None,
    k_cache: KCache = None,
    cache_type: CacheType = None,
    kv_file: KVFile = None,
    no_mmap: NoMmap = False,
    repack: Repack = False,
    *,
    where: Where,
    verbose: Verbose = 0,
) -> None:
    """Let a model write text, and show how fast it was.

    [bold]graphrt generate tiny-deepseek2 -p "ROMEO:" -n 200 --seed 1[/]
    [bold]graphrt generate model.gguf --chat -p "What is a tensor?" --temp 0[/]
    [bold]graphrt generate model.gguf -p "Once" -ot "ffn_.*_exps=cpu" -vv[/]
    [bold]graphrt generate model.gguf --chat --kv-file talk.kv --context-shift --keep -1[/]
    """
    sampling = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repeat_penalty": repeat_penalty,
        "repeat_last": repeat_last,
        "seed": seed,
    }
    start = time.perf_counter()
    options = given(mla=mla, k_cache=k_cache, cache_type=cache_type, kv_file=kv_file, sched_debug=verbose or None)
    request: dict[str, Any] = {"max_tokens": max_tokens, "stop": stop or (), "ignore_eos": ignore_eos, **sampling}
    request |= {"context_shift": context_shift, "keep": keep}
    # Left by an interrupt or an error too, the model puts its cache's file in order.
    with load_with_bar(model, no_mmap, repack, n_ctx=ctx_size, threads=threads, **where, **options) as loaded:
        load_seconds = time.perf_counter() - start
        if chat and prompt is None:
            _converse(loaded, system, request)
            return
        if prompt is None:
            hint = "give the text to go on from, or --chat to talk with the model"
            raise typer.BadParameter(hint, param_hint="--prompt")
        text = sys.stdin.read() if prompt == "-" else prompt
        generation = _stream(loaded, _conversation(system, text) if chat else text, request, echo="" if chat else text)
        warn_of_placement(loaded.scheduler)
        _show_timings(generation, load_seconds, loaded.contexts.idle[-1].cache.describe())
    if generation.finish_reason == "running":
        raise typer.Exit(INTERRUPTED)


def _stream(model: Model, prompt: Prompt, request: Mapping[str, Any], echo: str = "") -> Generation:
    """Write the pieces as they come, `echo` before the first; returns the finished generation."""
    with output.tokens_progress("prompt") as progress:
        generation = model.generate(prompt, progress=progress, **request)
        try:
            for piece in generation:
                # Not before the first piece is here: until then the line may show progress.
                output.write(echo + piece)
                echo = ""
        except KeyboardInterrupt:
            generation.close()
    output.write(echo + "\n")
    return generation


def _converse(model: Model, system: str | None, request: Mapping[str, Any]) -> None:
    """Take turns with the person at the terminal until the input ends."""
    messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
    console = output.stderr()
    console.print("[dim]Write a line and press Enter; Ctrl-D ends the conversation.[/]")
    while True:
        console.print("[bold green]>[/] ", end="")
        line = sys.stdin.readline()
        if not line:
            return
        messages.append({"role": "user", "content": line.rstrip("\n")})
        generation = _stream(model, messages, request)
        messages.append({"role": "assistant", "content": model.detokenize(generation.tokens)})


def _conversation(system: str | None, text: str) -> list[dict[str, str]]:
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": text}]


def _show_timings(generation: Generation, load_seconds: float, cache: str) -> None:
    timings, ended = generation.timings, ENDINGS.get(generation.finish_reason, generation.finish_reason)
    table = output.table("", ">tokens", ">time", ">tokens/s")
    table.add_row("load", "", f"{load_seconds:.2f} s", "")
    table.add_row("compile", "", f"{timings.compile_seconds:.2f} s", "")
    if timings.reused_tokens:
        table.add_row("reused", str(timings.reused_tokens), "", "")
    run = timings.prompt_tokens - timings.reused_tokens
    table.add_row("prompt", str(run), f"{timings.prompt_seconds:.2f} s", f"{timings.prompt_rate:.1f}")
    table.add_row(
        "decode", str(timings.decoded_tokens), f"{timings.decode_seconds:.2f} s", f"{timings.decode_rate:.1f}"
    )
    table.add_row("sampling", str(len(generation.tokens)), f"{timings.sample_seconds:.2f} s", "")
    if timings.context_shifts:
        ended += f", after {timings.context_shifts} context shifts"
    output.stderr().print(table, f"[dim]ended by: {ended}\n{cache}[/]", soft_wrap=True)
