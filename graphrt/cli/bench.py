"""`graphrt bench`: tokens per second of prompts and of decoding, measured as llama-bench does."""

from __future__ import annotations

import json
import platform
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graphrt.cli import output
from graphrt.cli.bench_report import BenchResult, BenchTest, as_csv, as_json, as_markdown
from graphrt.cli.options import (
    CacheType,
    KCache,
    Mla,
    ModelArgument,
    Threads,
    counts,
    given,
)
from graphrt.cli.placement import Where, warn_of_placement, with_placement
from graphrt.cli.reading import NoMmap, Repack, load_with_bar

if TYPE_CHECKING:
    from rich.console import Console

    from graphrt.models.context import Context
    from graphrt.models.gguf_file import GGUFFile
    from graphrt.models.model import Model
    from graphrt.profile import Profile

SEED = 0  # of the tokens: any will do, but a mixture of experts should see varied ones


class ReportForm(StrEnum):
    """How results are written."""

    md = "md"
    json = "json"
    csv = "csv"


@with_placement
def bench(
    model: ModelArgument,
    n_prompt: Annotated[
        str, typer.Option("-p", "--n-prompt", help="Prompt lengths, as 512 or 128,512; 0: none.")
    ] = "512",
    n_gen: Annotated[str, typer.Option("-n", "--n-gen", help="Numbers of tokens to decode; 0: none.")] = "128",
    pair: Annotated[
        list[str] | None, typer.Option("-pg", metavar="PP,TG", help="A prompt and decoding, timed as one; repeatable.")
    ] = None,
    n_depth: Annotated[
        str, typer.Option("-d", "--n-depth", help="Tokens in the context before the clock starts.")
    ] = "0",
    repetitions: Annotated[int, typer.Option("-r", "--repetitions", min=1, help="Timed runs of each test.")] = 5,
    form: Annotated[ReportForm, typer.Option("-o", "--output", help="Form of the results.")] = ReportForm.md,
    profile: Annotated[
        bool, typer.Option("--profile", help="Show the time of every op, tensor and module of each test too.")
    ] = False,
    trace: Annotated[
        Path | None,
        typer.Option("--trace", metavar="FILE", help="Write the profiles as a trace for ui.perfetto.dev."),
    ] = None,
    threads: Threads = None,
    mla: Mla = None,
    k_cache: KCache = None,
    cache_type: CacheType = None,
    no_mmap: NoMmap = False,
    repack: Repack = False,
    *,
    where: Where,
) -> None:
    """Measure a model's speed: pp512 is a prompt of 512 tokens, tg128 the decoding of 128, @ d1024 after 1024 others.

    [bold]graphrt bench model.gguf -p 512 -n 128 -d 0,4096 -r 3 -o json[/]
    """
    tests = list(_tests(counts("-p", n_prompt), counts("-n", n_gen), pair or [], counts("-d", n_depth)))
    if not tests:
        raise typer.BadParameter("nothing to measure: give -p, -n or -pg above 0")
    longest = max(test.n_prompt + test.n_gen + test.n_depth for test in tests)
    options = given(mla=mla, k_cache=k_cache, cache_type=cache_type)
    loaded = load_with_bar(model, no_mmap, repack, n_ctx=longest, threads=threads, **where, **options)
    results: list[BenchResult] = []
    profiles: list[tuple[str, Profile]] = []
    for test in tests:
        context = loaded.new_context()
        with output.status(f"{test.name}: {repetitions} runs"):
            results.append(_measure(loaded, context, test, repetitions))
            if profile or trace:
                profiles += _profiles(context, test, repetitions)
    warn_of_placement(loaded.scheduler)
    print({ReportForm.md: as_markdown, ReportForm.json: as_json, ReportForm.csv: as_csv}[form](results))
    if profile:
        _show_profiles(profiles, output.stdout() if form is ReportForm.md else output.stderr())
    if trace:
        events = [event for number, (name, one) in enumerate(profiles) for event in one.trace(name, number)]
        trace.write_text(json.dumps(events), encoding="utf-8")


def _tests(prompts: list[int], gens: list[int], pairs: list[str], depths: list[int]) -> Iterator[BenchTest]:
    """llama-bench's order: for each depth the prompts, the decodings, then the pairs."""
    for depth in depths:
        yield from (BenchTest(count, 0, depth) for count in prompts if count)
        yield from (BenchTest(0, count, depth) for count in gens if count)
        for text in pairs:
            both = counts("-pg", text)
            if len(both) != 2:
                raise typer.BadParameter(f"{text!r} is not of the form PP,TG", param_hint="-pg")
            yield BenchTest(both[0], both[1], depth)


def _measure(model: Model, context: Context, test: BenchTest, repetitions: int) -> BenchResult:
    """Run a test once to compile and warm up, then `repetitions` times by the clock."""
    when = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    _run(context, test)
    samples = [_run(context, test) for _ in range(repetitions)]
    return BenchResult(
        model_filename=str(model.file.path),
        model_type=_model_type(model.file),
        model_size=sum(tensor.nbytes for tensor in model.file.tensors.values()),
        model_n_params=sum(prod(tensor.shape) for tensor in model.file.tensors.values()),
        backends=",".join(backend.name for backend in model.backends if backend.name != "reference"),
        cpu_info=cpu_info(),
        n_threads=context.scheduler.settings.thread_count,
        type_k=model.options.cache_type,
        type_v=model.options.cache_type,
        n_prompt=test.n_prompt,
        n_gen=test.n_gen,
        n_depth=test.n_depth,
        test_time=when,
        samples_ns=samples,
    )


def _run(context: Context, test: BenchTest) -> int:
    """Nanoseconds of one run: the prompt at once, then token by token, after the untimed depth."""
    from graphrt.models.batch import Batch

    tokens, count = _tokens(context, test), test.n_depth + test.n_prompt + test.n_gen
    context.clear()
    if test.n_depth:
        context.decode(Batch.of(tokens[: test.n_depth]))
    start = time.perf_counter_ns()
    prompt_end = test.n_depth + test.n_prompt
    if test.n_prompt:
        context.decode(Batch.of(tokens[test.n_depth : prompt_end], test.n_depth))
    for position in range(prompt_end, count):
        context.decode(Batch.of(tokens[position : position + 1], position))
    return time.perf_counter_ns() - start


def _tokens(context: Context, test: BenchTest) -> list[int]:
    import numpy as np

    count = test.n_depth + test.n_prompt + test.n_gen
    tokens: list[int] = np.random.default_rng(SEED).integers(0, context.decoder.vocabulary_size, count).tolist()
    return tokens


def _profiles(context: Context, test: BenchTest, repetitions: int) -> Iterator[tuple[str, Profile]]:
    """The last ubatch of the prompt, and the first token after it, node by node."""
    from graphrt.models.batch import Batch

    tokens, position = _tokens(context, test), 0
    context.clear()
    for name, count in (("", test.n_depth), ("prompt", test.n_prompt), ("decode", min(test.n_gen, 1))):
        if count:
            context.decode(Batch.of(tokens[position : position + count], position))
            position += count
            if name and context.last_plan is not None:
                yield f"{test.name}: {name}", context.last_plan.profile(repetitions)


def _show_profiles(profiles: Sequence[tuple[str, Profile]], console: Console) -> None:
    for name, profile in profiles:
        console.print(f"\n{name}", style="bold")
        console.print(profile)


def _model_type(file: GGUFFile) -> str:
    """As llama-bench: architecture, size, and what most of the weights are stored in."""
    nbytes: Counter[str] = Counter()
    for tensor in file.tensors.values():
        nbytes[tensor.type_name] += tensor.nbytes
    label = str(file.metadata.get("general.size_label", ""))
    return " ".join(part for part in (file.architecture, label, nbytes.most_common(1)[0][0].upper()) if part)


def cpu_info() -> str:
    """The processor's name, where the system tells it."""
    listed = Path("/proc/cpuinfo")
    if listed.exists():
        for line in listed.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
