"""The command line: `graphrt` and `python -m graphrt`, one file per command."""

from __future__ import annotations


def main() -> None:
    """Run the command line; an error that graphrt raises on purpose ends it with one line and exit code 1."""
    from graphrt.cli.app import run

    raise SystemExit(run())
