"""A tokenizer whose calls and thoughts are marked by tokens of their own, with a template that shows tools."""

from __future__ import annotations

import json
from pathlib import Path

from support import tiny_tokenizer
from tokenizers import AddedToken, Tokenizer

# Special ones: a detokenizer that skips special tokens must show them to the parsers all the same.
MARKERS = ("<tool_call>", "</tool_call>", "<think>", "</think>")
CHAT_TEMPLATE = (
    "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}"
    '<tool_call>\n{"name": "{{ call.function.name }}", "arguments": '
    "{{ call.function.arguments | tojson }}}\n</tool_call>"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking %}<think>\n{% endif %}{% endif %}"
    "{# thoughts end with </think> #}"
)


def train() -> Tokenizer:
    """The tiny tokenizer, with markers."""
    tokenizer = tiny_tokenizer.train()
    tokenizer.add_special_tokens([AddedToken(marker, special=True, normalized=False) for marker in MARKERS])
    return tokenizer


def save(folder: Path) -> Tokenizer:
    """Writes what a gateway reads of a checkpoint."""
    tiny_tokenizer.save(folder)
    tokenizer = train()
    tokenizer.save(str(folder / "tokenizer.json"))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": CHAT_TEMPLATE}))
    return tokenizer
