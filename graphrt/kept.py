"""What was measured on this machine, kept on disk: a JSON file of numbers for each machine and setting."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any


def cache_root() -> Path:
    """graphrt's folder for what can be made again: $XDG_CACHE_HOME/graphrt, by default in ~/.cache (Windows:
    %LOCALAPPDATA%)."""
    base = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else None)
    return (Path(base) if base else Path.home() / ".cache") / "graphrt"


class Kept:
    """Values under names, of one machine, beside those of other machines in the same file.

    A file that is absent, unreadable or damaged holds nothing; one that cannot be written is no error.

    Args:
        file: its name in `cache_root`.
        machine: the machine and the settings that the values are of.
        version: of what was measured; values of another version are forgotten.
    """

    def __init__(self, file: str, machine: str, version: str) -> None:
        self.path = cache_root() / file
        self.machine, self.version = machine, version

    def get(self, name: str, default: Any = None) -> Any:
        """The value under a name as JSON has it; the default where there is none."""
        return self._values(self._read()).get(name, default)

    def put(self, name: str, value: Any) -> None:
        """Keep a value, beside whatever others have put there meanwhile."""
        kept = self._read()
        kept[self.machine] = {"version": self.version, "values": {**self._values(kept), name: value}}
        partial = self.path.with_suffix(f".{os.getpid()}")
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(kept, indent=1), encoding="utf-8")
            os.replace(partial, self.path)

    def _values(self, kept: dict[str, Any]) -> dict[str, Any]:
        mine = kept.get(self.machine)
        if not isinstance(mine, dict) or mine.get("version") != self.version:
            return {}
        values = mine.get("values")
        return values if isinstance(values, dict) else {}

    def _read(self) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            found = json.loads(self.path.read_text(encoding="utf-8"))
            if isinstance(found, dict):
                return found
        return {}
