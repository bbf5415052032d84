"""Templates give here what transformers makes of them."""

from __future__ import annotations

import pytest
from jinja2 import TemplateError
from jinja2.exceptions import SecurityError
from support import tiny_tokenizer
from transformers import PreTrainedTokenizerFast

from quire.gateway.chat.prompt import ChatPrompt
from quire.gateway.chat_template import ChatTemplate

MESSAGES = [
    {"role": "system", "content": "Be <brief>.  "},
    {"role": "user", "content": 'hello "world" é', "name": "Ann"},
    {"role": "assistant", "content": "a\n b"},
    {"role": "user", "content": "{{ 7 * 7 }}"},
]
SPECIAL_TOKENS = {"bos_token": "<|im_start|>", "eos_token": "<|end|>"}
TEMPLATES = [
    "{{ bos_token }}{% for message in messages %}\n  {% if loop.first %}\nfirst{% endif %}\n"
    "{{ message['role'] }}: {{ message['content'] | trim }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant{% endif %}",
    "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}{{ {'b': 1, 'a': 'é'} | tojson(sort_keys=true) }}",
    "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.content }}"
    "{% if loop.index == 3 %}{% break %}{% endif %}{% endfor %}",
    "{% set ns = namespace(found=false, n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% if m.name is defined %}{% set ns.found = true %}{% endif %}{% endfor %}{{ ns.found }} {{ ns.n }}",
    "{% for m in messages %}{% set x = m.content %}{% generation %}{% set x = 'inside' %}{{ x }} {{ m.role }}\n"
    "{% endgeneration %}{{ x }}{% endfor %}",
    "{% if tools %}tools{% endif %}{% if tools is none %}none{% endif %}{% if documents is defined %}d{% endif %}"
    "{{ missing }}{% macro turn(m) %}<{{ m.role }}>{% endmacro %}{{ turn(messages[0]) }}{{ dict(a=1).a }}",
    "{{ strftime_now('%Y') | length }}{{ '%s-%s' | format('a', 'b') }}{{ messages[1:] | length }}",
]


@pytest.mark.parametrize("add_generation_prompt", [False, True])
@pytest.mark.parametrize("source", TEMPLATES)
def test_a_template_gives_what_transformers_gives(source: str, add_generation_prompt: bool) -> None:
    theirs = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer.train(), **SPECIAL_TOKENS)
    expected = theirs.apply_chat_template(
        MESSAGES, chat_template=source, tokenize=False, add_generation_prompt=add_generation_prompt
    )
    rendered = ChatTemplate(source, SPECIAL_TOKENS).render(ChatPrompt(MESSAGES, add_generation_prompt))
    assert rendered == expected


@pytest.mark.parametrize("source", ["{% for", "{{ raise_exception('no') }}", "{{ messages.append(1) }}"])
def test_what_a_template_refuses(source: str) -> None:
    with pytest.raises(TemplateError):
        ChatTemplate(source, {}).render(ChatPrompt(MESSAGES))


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ namespace(__init__=1) }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ raise_exception.__globals__['json'] }}",
    ],
)
def test_the_sandbox_holds(source: str) -> None:
    with pytest.raises(SecurityError):
        ChatTemplate(source, {}).render(ChatPrompt(MESSAGES))
