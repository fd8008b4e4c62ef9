"""Chat templates: a conversation as the text that a model was trained on.

Templates come from files that strangers made, so they run in jinja2's sandbox, without access to Python's objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

from graphrt.errors import FormatError, GraphError

if TYPE_CHECKING:
    from jinja2 import Template

MAX_TEMPLATE_CHARACTERS = 1 << 20


def render(
    messages: Sequence[Mapping[str, Any]],
    template: str | None,
    bos: str = "",
    eos: str = "",
    add_generation_prompt: bool = True,
    **variables: Any,
) -> str:
    """A conversation as text.

    Args:
        messages: [{"role": "user", "content": "..."}, ...].
        template: Jinja source, as in a vocabulary's `chat_template`.
        bos, eos: spelling of the special tokens. Templates write BOS themselves: encode the result without adding it.
        add_generation_prompt: end with what opens the model's answer.
        variables: further names that the template may use (tools, enable_thinking ...).
    Raises: FormatError if there is no template, or it is not valid Jinja; GraphError if it refuses the messages.
    """
    from jinja2 import TemplateError

    if not template:
        raise FormatError(
            "[chat] the model has no chat template (tokenizer.chat_template); give a prompt instead of messages"
        )
    compiled = _compiled(template)
    try:
        return compiled.render(
            messages=list(messages),
            bos_token=bos,
            eos_token=eos,
            add_generation_prompt=add_generation_prompt,
            **{"tools": None, **variables},
        )
    except (TemplateError, TypeError, ValueError, ArithmeticError, RecursionError, LookupError) as error:
        raise GraphError(f"[chat] the model's chat template refuses these messages: {error}; see its roles") from error


@lru_cache(maxsize=8)
def _compiled(template: str) -> Template:
    from jinja2 import TemplateSyntaxError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    if len(template) > MAX_TEMPLATE_CHARACTERS:
        raise FormatError(
            f"[chat] a template of {len(template)} characters; at most {MAX_TEMPLATE_CHARACTERS} are read"
        )
    # These three settings and two functions are what transformers gives to templates.
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(template)
    except (TemplateSyntaxError, RecursionError) as error:
        line = getattr(error, "lineno", 0)
        raise FormatError(
            f"[chat] line {line} of the chat template is not valid Jinja: {error}; mend the file"
        ) from error


def _refuse(message: str) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False) -> str:
    """JSON without HTML escapes, which jinja2's own filter adds."""
    import json

    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii)
