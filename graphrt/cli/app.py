"""The `graphrt` command: its subcommands, and how errors reach the person."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated

import typer

from graphrt import __version__
from graphrt.cli import output
from graphrt.cli.bench import bench
from graphrt.cli.convert import convert
from graphrt.cli.generate import generate
from graphrt.cli.inspect import inspect
from graphrt.cli.perplexity import perplexity
from graphrt.cli.plan import plan
from graphrt.cli.synth import synth
from graphrt.cli.tune import tune
from graphrt.cli.warmup import warmup
from graphrt.errors import GraphrtError

app = typer.Typer(
    name="graphrt",
    help="Run GGUF models through compute graphs that you can see and change.",
    epilog='Try: graphrt generate tiny-deepseek2 --prompt "ROMEO:"',
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (generate, inspect, plan, bench, perplexity, tune, warmup, convert, synth):
    app.command()(command)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"graphrt {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    if debug:
        os.environ["GRAPHRT_TRACEBACK"] = "1"


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    try:
        app(arguments)
    except GraphrtError as error:
        if os.environ.get("GRAPHRT_TRACEBACK"):
            raise
        output.error(str(error))
        return 1
    return 0
