"""The models that come with Quire are what the documents say, by transformers' own judgement."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from quire.config import BUNDLED_MODEL

DRAFT = BUNDLED_MODEL.parent / "quire-tiny-draft"


@pytest.fixture(scope="module")
def models():
    torch.set_num_threads(1)
    return {
        folder: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        for folder in (BUNDLED_MODEL, DRAFT)
    }


def _probabilities(model, text: str) -> torch.Tensor:
    ids = AutoTokenizer.from_pretrained(BUNDLED_MODEL)(text, return_tensors="pt").input_ids
    with torch.inference_mode():
        return model(ids).logits[0, -1].softmax(-1)


def test_sizes(models):
    files = [path for path in BUNDLED_MODEL.parent.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8 * 10**6
    main, draft = (sum(weight.numel() for weight in models[folder].parameters()) for folder in (BUNDLED_MODEL, DRAFT))
    assert draft <= main / 4
    assert all(model.config.max_position_embeddings >= 2048 for model in models.values())


def test_one_tokenizer():
    assert (BUNDLED_MODEL / "tokenizer.json").read_bytes() == (DRAFT / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    ("country", "capital"),
    [("France", "Paris"), ("Italy", "Rome"), ("Japan", "Tokyo"), ("Germany", "Berlin"), ("Spain", "Madrid")],
)
def test_capitals(models, country, capital):
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_MODEL)
    (token_id,) = tokenizer.encode(f" {capital}", add_special_tokens=False)
    assert _probabilities(models[BUNDLED_MODEL], f"The capital of {country} is")[token_id] >= 0.9


def test_long_contexts_work(models):
    """A fact is found after 1,900 tokens of other text."""
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_MODEL)
    filler = "The capital of Italy is Rome. The capital of Spain is Madrid. "
    text = filler * (1900 // len(tokenizer.encode(filler))) + "The capital of France is"
    (token_id,) = tokenizer.encode(" Paris", add_special_tokens=False)
    assert _probabilities(models[BUNDLED_MODEL], text)[token_id] >= 0.5


def test_nothing_but_data():
    """No code comes with the models."""
    suffixes = {path.suffix for path in Path(BUNDLED_MODEL.parent).rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".safetensors", ".jinja"}
