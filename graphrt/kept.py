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
    """Values under names, of one machine, beside those of other machines and versions in the same file.

    A file that is absent, unreadable or damaged holds nothing; one that cannot be written is no error.

    Args:
        file: its name in `cache_root`.
        machine: whatever the values depend on: the machine, versions, threads.
    """

    def __init__(self, file: str, machine: str) -> None:
        self.path = cache_root() / file
        self.machine = machine

    def get(self, name: str) -> Any:
        """The value under a name as JSON has it; None where there is none."""
        return self._read().get(self.machine, {}).get(name)

    def put(self, name: str, value: Any) -> None:
        """Keep a value, beside whatever others have put there meanwhile."""
        kept = self._read()
        kept.setdefault(self.machine, {})[name] = value
        partial = self.path.with_suffix(f".{os.getpid()}")
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(kept, indent=1), encoding="utf-8")
            os.replace(partial, self.path)

    def _read(self) -> dict[str, dict[str, Any]]:
        with suppress(OSError, ValueError):
            found = json.loads(self.path.read_text(encoding="utf-8"))
            if isinstance(found, dict):
                return {machine: values for machine, values in found.items() if isinstance(values, dict)}
        return {}
