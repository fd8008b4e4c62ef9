"""The parts of config.json that are written in more than one way."""

from __future__ import annotations

from dataclasses import dataclass
from math import isclose
from typing import Any

from graphrt.errors import FormatError
from graphrt.models.hyperparameters import yarn_magnitude

Config = dict[str, Any]


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding.

    Args:
        theta: base of the frequencies.
        kind: "default", "linear", "yarn" or "llama3".
        values: the remaining fields of the scaling (factor, beta_fast ...).
    """

    theta: float
    kind: str
    values: Config

    def number(self, name: str, default: float | None = None) -> float:
        """One field of the scaling; `default` where it is absent or null.

        Raises: FormatError if it is missing and has no default, or is no number.
        """
        found = self.values.get(name)
        found = default if found is None else found
        if not isinstance(found, int | float):
            raise FormatError(f'[config.json] rope scaling "{self.kind}" lacks the number "{name}"; add it')
        return float(found)


def rope_of(config: Config) -> Rope:
    """Rope settings, whether written as rope_theta and rope_scaling or, from transformers 5 on, as rope_parameters."""
    fields = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(fields, dict):
        raise FormatError(f"[config.json] the rope settings are {fields!r}, not an object; mend the file")
    fields = dict(fields)
    theta = fields.pop("rope_theta", config.get("rope_theta", 10000.0))
    if not isinstance(theta, int | float):
        raise FormatError(f'[config.json] "rope_theta" must be a number, it is {theta!r}; mend the file')
    kind = fields.pop("rope_type", None) or fields.pop("type", None) or "default"
    fields.pop("type", None)
    if kind not in ("default", "linear", "yarn", "llama3"):
        raise FormatError(f'[config.json] rope scaling "{kind}" is unknown; known: default, linear, yarn, llama3')
    return Rope(float(theta), kind, fields)


def rope_metadata(config: Config, architecture: str) -> dict[str, Any]:
    """GGUF's rope keys; llama3's scaling is a tensor and has none."""
    rope = rope_of(config)
    prefix = f"{architecture}.rope"
    found: dict[str, Any] = {f"{prefix}.freq_base": rope.theta}
    if rope.kind not in ("linear", "yarn"):
        return found
    found |= {f"{prefix}.scaling.type": rope.kind, f"{prefix}.scaling.factor": rope.number("factor")}
    if rope.kind == "yarn":
        original = rope.number("original_max_position_embeddings", required(config, "max_position_embeddings"))
        found |= {
            f"{prefix}.scaling.original_context_length": int(original),
            f"{prefix}.scaling.yarn_beta_fast": rope.number("beta_fast", 32.0),
            f"{prefix}.scaling.yarn_beta_slow": rope.number("beta_slow", 1.0),
        }
    return found


def required(config: Config, name: str) -> int:
    """A whole number of config.json.

    Raises: FormatError if it is missing or is something else.
    """
    found = config.get(name)
    if type(found) is not int:
        raise FormatError(
            f'[config.json] "{name}" must be a whole number, it is {found!r}; '
            f"is this the config.json of a {config.get('model_type')} model?"
        )
    return found


def norm_eps(config: Config) -> float:
    """What the norms add under the root.

    Raises: FormatError if config.json does not say.
    """
    found = config.get("rms_norm_eps")
    if not isinstance(found, int | float):
        raise FormatError(
            f'[config.json] "rms_norm_eps" must be a number, it is {found!r}; take it from the model\'s page'
        )
    return float(found)


def yarn_rotation(rope: Rope) -> float:
    """The magnitude that transformers gives the rotation: mscale against mscale_all_dim, or YaRN's own."""
    factor, explicit = rope.number("factor"), rope.number("attention_factor", 0.0)
    own, everywhere = rope.number("mscale", 0.0), rope.number("mscale_all_dim", 0.0)
    if explicit:
        return explicit
    if own and everywhere:
        return yarn_magnitude(factor, own) / yarn_magnitude(factor, everywhere)
    return yarn_magnitude(factor)


def attention_factor(architecture: str, magnitude: float) -> dict[str, Any]:
    """The key that multiplies the rotation's magnitude, left out where it is 1."""
    return {} if isclose(magnitude, 1.0) else {f"{architecture}.rope.scaling.attn_factor": magnitude}
