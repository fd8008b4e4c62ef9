"""Chat templates: what they may use, what they may not, and what is said when they fail."""

from __future__ import annotations

import pytest

from graphrt.errors import FormatError, GraphError
from graphrt.models.chat import render

MESSAGES = [{"role": "user", "content": "Hi <there>"}, {"role": "assistant", "content": "Yes?"}]
CHATML = (
    "{{ bos_token }}{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message['content'] | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_renders_a_conversation() -> None:
    expected = "<s><|im_start|>user\nHi <there><|im_end|>\n<|im_start|>assistant\nYes?<|im_end|>\n"
    assert render(MESSAGES, CHATML, "<s>", "</s>", add_generation_prompt=False) == expected
    assert render(MESSAGES, CHATML, "<s>", "</s>") == expected + "<|im_start|>assistant\n"


def test_blocks_leave_no_blank_lines() -> None:
    assert render(MESSAGES, "{% if true %}\n  {% set x = 1 %}\nx={{ x }}\n{% endif %}\n") == "x=1\n"


def test_templates_may_use_what_transformers_gives_them() -> None:
    template = "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m | tojson }}{% endfor %}"
    assert render(MESSAGES, template) == '{"role": "user", "content": "Hi <there>"}'
    assert render(MESSAGES, "{{ strftime_now('%Y') }}").isdigit()
    assert render(MESSAGES, "{{ tools is none }} {{ thinking }}", thinking=True) == "True True"


def test_a_missing_template_is_an_error() -> None:
    with pytest.raises(FormatError, match="no chat template"):
        render(MESSAGES, None)


def test_a_template_that_refuses_says_why() -> None:
    with pytest.raises(GraphError, match="roles must alternate"):
        render(MESSAGES, "{{ raise_exception('roles must alternate') }}")


def test_a_template_that_is_not_jinja_names_the_line() -> None:
    with pytest.raises(FormatError, match="line 2"):
        render(MESSAGES, "a\n{% for %}")


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ render.__globals__ }}",
        "{{ 1 // 0 }}",
        "{{ messages[0] + 1 }}",
        "{% for i in range(10 ** 9) %}x{% endfor %}",
    ],
)
def test_the_sandbox_holds(template: str) -> None:
    with pytest.raises(GraphError):
        render(MESSAGES, template)
