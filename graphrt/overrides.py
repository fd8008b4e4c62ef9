"""Override rules: `regex=backend`, ordered, the first match wins.

A rule places weights and states (a KV cache) by name; `regex@prompt=backend` and `regex@decode=backend` hold in one
phase only. The last '=' splits, so that a pattern may hold commas, braces and equals signs. Node rules have the same
form; they place nodes by their own name or their op's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from graphrt.errors import SettingsError
from graphrt.tensor import Tensor

PHASES = ("prompt", "decode")
_PHASE = re.compile(r"@(\w+)$")


@dataclass
class Rule:
    """One rule, and how many tensors it placed.

    Args:
        pattern: searched for in a tensor's name.
        backend: name of the backend.
        phase: the phase it holds in; every one where None.
        text: as it was written.
    """

    pattern: re.Pattern[str]
    backend: str
    phase: str | None
    text: str
    matches: int = field(default=0, compare=False)

    def holds(self, name: str, phase: str | None) -> bool:
        """Whether the rule places a tensor of that name in that phase."""
        return (self.phase is None or self.phase == phase) and self.pattern.search(name) is not None


def parse(texts: Iterable[str], backends: Iterable[str]) -> list[Rule]:
    """Read rules for backends of these names; a name's case does not matter.

    Raises: SettingsError that quotes the rule, for a form, regex, phase or backend that cannot be.
    """
    names = {name.lower(): name for name in backends}
    return [_parse(text, names) for text in texts]


def _parse(text: str, names: dict[str, str]) -> Rule:
    pattern, equals, backend = text.rpartition("=")
    if not equals or not pattern:
        raise SettingsError(f'[override] "{text}" is not of the form regex=backend')
    name = names.get(backend.strip().lower())
    if name is None:
        raise SettingsError(
            f'[override] "{text}": no backend is called "{backend.strip()}"; there are: {", ".join(names.values())}'
        )
    phase = _PHASE.search(pattern)
    if phase is not None and phase[1] not in PHASES:
        raise SettingsError(f'[override] "{text}": no phase is called "{phase[1]}"; there are: {", ".join(PHASES)}')
    try:
        compiled = re.compile(pattern[: phase.start()] if phase else pattern)
    except re.error as error:
        raise SettingsError(f'[override] "{text}": the pattern is not a regular expression: {error}') from error
    return Rule(compiled, name, phase[1] if phase else None, text)


def first_match(rules: Sequence[Rule], tensor: Tensor, phase: str | None) -> Rule | None:
    """The first rule that places a tensor, by its name or, for a node, by its op's name; its matches are counted."""
    op = tensor.op.name if tensor.op is not None else ""
    for rule in rules:
        if rule.holds(tensor.name, phase) or (op and rule.holds(op, phase)):
            rule.matches += 1
            return rule
    return None


def from_file(path: str | Path) -> list[str]:
    """The rules of a file, one a line; empty lines and lines that begin with '#' do not count.

    Raises: SettingsError if the file cannot be read.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"[override] the file {path} cannot be read: {error}") from error
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


EXPERTS = r"ffn_(gate|up|down|gate_up)_exps"


def cpu_moe(backend: str = "cpu") -> str:
    """The rule that leaves all experts' weights on the host."""
    return rf"\.{EXPERTS}\.={backend}"


def n_cpu_moe(count: int, backend: str = "cpu") -> str:
    """The rule that leaves the experts' weights of the first `count` layers on the host."""
    return rf"^blk\.{_layers(range(count))}\.{EXPERTS}\.={backend}"


def layers_to(count: int, backend: str) -> str:
    """The rule that puts the first `count` layers, with their cache, on a backend."""
    numbers = _layers(range(count))
    return rf"^(blk\.{numbers}\.|cache_\w+-{numbers}$)={backend}"


def gpu_layers(count: int, layers: int, device: str) -> list[str]:
    """The rules of llama.cpp's -ngl: the output and the last `count` - 1 layers, with their cache, on a device."""
    if count <= 0:
        return []
    numbers = _layers(range(max(0, layers + 1 - count), layers))
    inside = [rf"^(blk\.{numbers}\.|cache_\w+-{numbers}$)={device}"] if count > 1 else []
    return [rf"^output(_norm)?\.={device}", *inside]


def _layers(numbers: Iterable[int]) -> str:
    return f"({'|'.join(map(str, numbers))})"
