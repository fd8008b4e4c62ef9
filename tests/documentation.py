"""The code in a Markdown file, and how to run it as a reader would."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])

_FENCE = re.compile(
    r'^```(?P<language>\w*)(?: title="(?P<title>[^"]+)")?\n(?P<code>.*?)^```$', re.MULTILINE | re.DOTALL
)
_LINK = re.compile(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)")


@dataclass(frozen=True)
class Block:
    """A fenced block: python, sh, text or cpp; a block with a title is a file of the reader's."""

    language: str
    title: str
    code: str
    line: int


def blocks(document: Path) -> list[Block]:
    """The fenced blocks of a document, in order."""
    text = document.read_text()
    return [
        Block(match["language"], match["title"] or "", match["code"], text.count("\n", 0, match.start()) + 1)
        for match in _FENCE.finditer(text)
    ]


def links(document: Path) -> list[Path]:
    """The files that a document points to."""
    return [document.parent / target for target in _LINK.findall(document.read_text())]


class Reader:
    """Follows a document in an empty folder: python blocks share their names, as in a notebook.

    A text block shows what the python block before it printed; numbers may differ, which machines do too.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._names: dict[str, Any] = {"__name__": "__main__"}
        self._printed = ""
        self._commands = folder / "bin"
        self._commands.mkdir()
        for command, target in {"graphrt": "-m graphrt", "python": ""}.items():
            script = self._commands / command
            script.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" {target} "$@"\n')
            script.chmod(0o755)

    def follow(self, block: Block) -> None:
        """Run a block, or save it where it has a title."""
        if block.title:
            (self.folder / block.title).write_text(block.code)
        elif block.language == "python":
            # A file of its own, since Numba keeps kernels on disk beside the source that made them.
            path = self.folder / f"line_{block.line}.py"
            path.write_text(block.code)
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile(block.code, str(path), "exec"), self._names)
            self._printed = printed.getvalue()
        elif block.language == "text":
            assert _without_numbers(block.code) == _without_numbers(self._printed), f"line {block.line}"
        elif block.language == "sh":
            self._shell(block)

    def _shell(self, block: Block) -> None:
        for line in block.code.splitlines():
            words = shlex.split(line, comments=True)
            if not words or words[0] in ("make", "pip"):
                continue
            environment = os.environ | {"PATH": f"{self._commands}:{os.environ['PATH']}"}
            result = subprocess.run(
                ["bash", "-c", line], cwd=self.folder, env=environment, capture_output=True, text=True, check=False
            )
            assert result.returncode == 0, f"{line}\n{result.stdout}{result.stderr}"


def _without_numbers(text: str) -> str:
    return re.sub(r"\d[\d,]*", "0", text.strip())


def make_targets(block: Block) -> list[str]:
    """The targets of the `make` lines of a block."""
    lines = [shlex.split(line, comments=True) for line in block.code.splitlines()]
    return [target for words in lines if words[:1] == ["make"] for target in words[1:]]
