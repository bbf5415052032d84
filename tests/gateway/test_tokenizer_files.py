"""What is loaded without transformers is what transformers loads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import tiny_tokenizer
from transformers import PreTrainedTokenizerFast

from quire.config import BUNDLED_MODEL
from quire.gateway import tokenizer_files
from quire.gateway.tokenizer_files import ChatTemplates, LoadedTokenizer, load_tokenizer

CHATS = [
    [{"role": "user", "content": "hello <b>world</b> \"quoted\" 'é'"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "x", "name": "Ann"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "\n"}],
]


def edit(folder: Path, name: str, **changes: Any) -> None:
    path = folder / name
    values = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**values, **changes}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_tokenizer.save(tmp_path)
    return tmp_path


def load(folder: Path) -> LoadedTokenizer:
    loaded = load_tokenizer(str(folder), None)
    assert loaded is not None
    return loaded


def check_same(folder: Path) -> None:
    """Tokens and names as transformers has them."""
    ours, theirs = load(folder), PreTrainedTokenizerFast.from_pretrained(folder)
    assert ours.special_tokens == theirs.special_tokens_map
    assert ours.eos_token_id == theirs.eos_token_id
    assert ours.chat_templates.default == theirs.chat_template
    assert ours.backend.get_added_tokens_decoder() == theirs.backend_tokenizer.get_added_tokens_decoder()

    @given(st.text(alphabet=st.characters(codec="utf-8")) | st.sampled_from(["a<|end|> b", " <extra>x", "<|im_end|>"]))
    def check(text: str) -> None:
        assert ours.backend.encode(text).ids == theirs.backend_tokenizer.encode(text).ids

    check()


@pytest.mark.skipif(not BUNDLED_MODEL.exists(), reason="the bundled model has not been built")
def test_the_bundled_tokenizer() -> None:
    check_same(BUNDLED_MODEL)


def test_a_plain_tokenizer(folder: Path) -> None:
    check_same(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"add_bos_token": True, "bos_token": "<|im_start|>"},
        {"bos_token": {"__type": "AddedToken", "content": "<|im_start|>", "special": True}},
        {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]},
        {"eos_token": None},
        {"image_token": "<|im_start|>"},
    ],
)
def test_settings_that_change_no_token(folder: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    edit(folder, "tokenizer_config.json", **changes)
    check_same(folder)
    monkeypatch.setattr(tokenizer_files, "_load_with_transformers", None)
    load(folder)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("tokenizer_config.json", {"pad_token": "<extra>"}),
        ("tokenizer_config.json", {"additional_special_tokens": ["<extra>"]}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"999": {"content": "<extra>", "special": True}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"0": {"content": "<|end|>", "lstrip": True}}}),
        ("tokenizer_config.json", {"split_special_tokens": True}),
        ("special_tokens_map.json", {"pad_token": "<extra>"}),
        ("added_tokens.json", {"<extra>": 999}),
    ],
)
def test_what_changes_tokens_is_left_to_transformers(folder: Path, name: str, changes: dict[str, Any]) -> None:
    edit(folder, name, **changes)
    check_same(folder)


def test_named_chat_templates(folder: Path) -> None:
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    edit(folder, "tokenizer_config.json", chat_template=named)
    assert load(folder).chat_templates == ChatTemplates("D", "T")
    edit(folder, "tokenizer_config.json", chat_template=named[:1])
    assert load(folder).chat_templates == ChatTemplates(None, "T")
    (folder / "chat_template.jinja").write_text("F")
    assert load(folder).chat_templates == ChatTemplates("F", "F")


def test_a_gateway_imports_neither_transformers_nor_torch() -> None:
    program = (
        "import sys, quire.gateway.server\n"
        "from quire.config import BUNDLED_MODEL\n"
        "from quire.gateway.tokenizer import ModelTokenizer\n"
        "ModelTokenizer._load(str(BUNDLED_MODEL), None).close()\n"
        "print([name for name in ('torch', 'transformers', 'numpy', 'huggingface_hub') if name in sys.modules])\n"
    )
    found = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
