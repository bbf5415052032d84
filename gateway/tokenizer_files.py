"""Loads a checkpoint's tokenizer with the `tokenizers` library alone, where that gives what transformers gives.

Importing transformers takes two seconds, more than all else that a gateway does to start. A tokenizer.json is
complete in itself; of tokenizer_config.json only the chat template and the names of the special tokens matter, unless
it (or an older file beside it) adds or changes a token. Whatever is unusual is left to transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from quire.gateway.checkpoint_files import find_file, read_json

# Settings by which transformers changes the tokenizer itself.
_CHANGING_SETTINGS = ("split_special_tokens", "fix_mistral_regex", "init_inputs", "auto_map")
_LISTS_OF_TOKENS = ("additional_special_tokens", "extra_special_tokens")
# Where older checkpoints have what a newer tokenizer_config.json has as added_tokens_decoder.
_OLDER_FILES = ("special_tokens_map.json", "added_tokens.json")


@dataclass(frozen=True, slots=True)
class ChatTemplates:
    """The sources of a checkpoint's chat templates."""

    default: str | None
    # For chats with tools: the one called tool_use, as in transformers, or else the default.
    for_tools: str | None

    @classmethod
    def of(cls, given: Any) -> ChatTemplates:
        """A checkpoint has one template, or several by name (as an object, or a list of objects)."""
        if isinstance(given, list):
            given = {entry["name"]: entry["template"] for entry in given}
        named = given if isinstance(given, dict) else {"default": given}
        texts = {name: text for name, text in named.items() if isinstance(text, str)}
        default = texts.get("default")
        return cls(default, texts.get("tool_use", default))


@dataclass(frozen=True, slots=True)
class LoadedTokenizer:
    """What the files say."""

    backend: Tokenizer
    # By role, such as eos_token; chat templates read them.
    special_tokens: Mapping[str, str]
    chat_templates: ChatTemplates
    # tokenizer.json, where there is one.
    file: Path | None = None

    @property
    def eos_token_id(self) -> int | None:
        """The id of the token that ends a text, if there is one."""
        name = self.special_tokens.get("eos_token")
        return None if name is None else self.backend.token_to_id(name)


def load_tokenizer(model: str, revision: str | None) -> LoadedTokenizer | None:
    """The tokenizer of a folder or hub id; None if there is none that the `tokenizers` library can run.

    Raises whatever a damaged file makes the libraries raise.
    """
    path = find_file(model, "tokenizer.json", revision)
    if path is None:
        return _load_with_transformers(model, revision, None)
    config = read_json(model, "tokenizer_config.json", revision)
    backend = Tokenizer.from_file(str(path))
    special_tokens = _named_tokens(config)
    if not _is_complete(backend, config, special_tokens) or _needs_older_files(model, revision, config):
        return _load_with_transformers(model, revision, path)
    template_file = find_file(model, "chat_template.jinja", revision)
    template = config.get("chat_template") if template_file is None else template_file.read_text(encoding="utf-8")
    return LoadedTokenizer(backend, special_tokens, ChatTemplates.of(template), path)


def _named_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """The tokens that have a role; each is a text, or an object with its text."""
    entries = {role: entry for role, entry in config.items() if role.endswith("_token")}
    texts = {role: entry.get("content") if isinstance(entry, dict) else entry for role, entry in entries.items()}
    return {role: text for role, text in texts.items() if isinstance(text, str)}


def _is_complete(backend: Tokenizer, config: Mapping[str, Any], special_tokens: Mapping[str, str]) -> bool:
    """Whether tokenizer.json has all tokens that tokenizer_config.json names, as it has them."""
    if any(config.get(setting) for setting in _CHANGING_SETTINGS):
        return False
    added = backend.get_added_tokens_decoder()
    contents = {token.content for token in added.values()}
    lists = [config.get(name) or [] for name in _LISTS_OF_TOKENS]
    if not all(isinstance(tokens, list) and contents.issuperset(map(_content, tokens)) for tokens in lists):
        return False
    described = config.get("added_tokens_decoder", {})
    same = all(_state(added.get(int(token_id))) == _state(AddedToken(**token)) for token_id, token in described.items())
    return same and contents.issuperset(special_tokens.values())


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _state(token: AddedToken | None) -> object:
    return None if token is None else token.__getstate__()


def _needs_older_files(model: str, revision: str | None, config: Mapping[str, Any]) -> bool:
    if "added_tokens_decoder" in config:
        return False
    return any(find_file(model, name, revision) is not None for name in _OLDER_FILES)


def _load_with_transformers(model: str, revision: str | None, file: Path | None) -> LoadedTokenizer | None:
    if file is not None:
        # Asking for the right class instead would import torch, which takes seconds and hundreds of megabytes.
        from transformers import PreTrainedTokenizerFast

        loaded = PreTrainedTokenizerFast.from_pretrained(model, revision=revision or "main")
    else:
        from transformers import AutoTokenizer

        loaded = AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=False)
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        return None
    return LoadedTokenizer(backend, loaded.special_tokens_map, ChatTemplates.of(loaded.chat_template), file)
