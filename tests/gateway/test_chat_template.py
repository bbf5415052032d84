"""Templates give here what transformers makes of them."""

from __future__ import annotations

from typing import Any

import pytest
from jinja2 import TemplateError
from jinja2.exceptions import SecurityError
from support import tiny_tokenizer
from transformers import PreTrainedTokenizerFast

from quire.gateway.chat.prompt import ChatPrompt, Tool, ToolChoice
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


WEATHER = Tool("get_weather", "The weather", {"type": "object", "properties": {"city": {"type": "string"}}})
CALL = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Tōkyō"}}}
TOOL_MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": [{"type": "text", "text": "Is it"}, {"type": "text", "text": " hot? "}]},
    {"role": "assistant", "content": "", "reasoning_content": "I look.", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "1", "content": "sunny"},
    {"role": "assistant", "content": "It is  "},
]
TOOL_TEMPLATE = (
    "{% if tools %}{% for tool in tools %}{{ tool | tojson }}{{ tool.function.name }}\n{% endfor %}{% endif %}"
    "{% if documents %}{{ documents[0].text }}{% endif %}{{ mood }}{{ bos_token }}"
    "{% for m in messages %}<{{ m.role }}>"
    "{% if m.reasoning_content %}[{{ m.reasoning_content }}|{{ m.thinking }}]{% endif %}"
    "{% if m.content is string %}{{ m.content CONTENT }}{% else %}"
    "{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}"
    "{% for call in m.tool_calls or [] %}{{ call.function.arguments | tojson }}{% endfor %}{{ m.tool_call_id }}"
    "</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.mark.parametrize("continues", [False, True])
@pytest.mark.parametrize("trims", [False, True])
def test_tools_variables_and_continued_messages(continues: bool, trims: bool) -> None:
    source = TOOL_TEMPLATE.replace(" CONTENT", " | trim" if trims else "")
    variables = {"documents": [{"text": "a book"}], "mood": "glad", "bos_token": "<own>"}
    theirs = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer.train(), **SPECIAL_TOKENS)
    expected = theirs.apply_chat_template(
        TOOL_MESSAGES,
        tools=[
            {
                "type": "function",
                "function": {"name": "get_weather", "description": "The weather", "parameters": WEATHER.parameters},
            }
        ],
        chat_template=source,
        tokenize=False,
        add_generation_prompt=not continues,
        continue_final_message=continues,
        **variables,
    )
    prompt = ChatPrompt(TOOL_MESSAGES, not continues, continues, [WEATHER], template_kwargs=variables)
    assert ChatTemplate(source, SPECIAL_TOKENS).render(prompt) == expected


def test_a_function_that_must_not_be_called_is_not_shown() -> None:
    prompt = ChatPrompt(MESSAGES, tools=[WEATHER], tool_choice=ToolChoice("none"))
    assert ChatTemplate("{{ tools }}", {}).render(prompt) == "None"


def test_parts_are_joined_for_a_template_that_takes_texts_only() -> None:
    rendered = ChatTemplate("{% for m in messages %}{{ m.content }}|{% endfor %}", {}).render(ChatPrompt(TOOL_MESSAGES))
    assert rendered.startswith("Is it\n hot? ||")


@pytest.mark.parametrize(
    ("source", "role"),
    [
        ("{{ messages[0].role }}", "system"),
        ("{{ messages[0].role }}{# or developer #}", "developer"),
    ],
)
def test_a_developer_is_the_system_of_templates_that_do_not_know_the_role(source: str, role: str) -> None:
    prompt = ChatPrompt([{"role": "developer", "content": "Be brief."}])
    assert ChatTemplate(source, {}).render(prompt) == role


def test_a_message_that_the_template_leaves_out_cannot_be_continued() -> None:
    prompt = ChatPrompt(TOOL_MESSAGES, continue_final_message=True)
    with pytest.raises(TemplateError, match="continued"):
        ChatTemplate("{{ messages[0].content }}", {}).render(prompt)


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
