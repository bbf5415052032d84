"""Grammars as llguidance runs them: the gateway tries one out, the executor then does the same with it.

One place, so that what the gateway accepts cannot fail in an executor: the same tokenizer, the same limits.
llguidance is imported when the first grammar comes; starting a process must not wait for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from quire.errors import CheckpointError, QuireError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

# Symbols of a compiled grammar.
_MAX_GRAMMAR_SIZE: Final = 200_000
# Of one sequence's lexer; so many take about 150 MB. llguidance's own limits bound the rest: building the lexer to
# about 20 ms, and one mask, for which all sequences of a step wait, to about 15 ms.
_MAX_LEXER_STATES: Final = 100_000


def load_grammar_tokenizer(file: Path, vocab_size: int, eos_token_ids: Sequence[int]) -> LLTokenizer:
    """The tokenizer of a tokenizer.json; takes up to a second for a large vocabulary.

    Args:
        file: a tokenizer.json.
        vocab_size: of the model. Tokens that only the model has are never allowed.
        eos_token_ids: any of these ends an output; at least one.

    Raises:
        CheckpointError: the file cannot be used.
    """
    from llguidance import LLTokenizer

    try:
        content = file.read_text(encoding="utf-8")
        try:
            return LLTokenizer(content, n_vocab=vocab_size, eos_token=list(eos_token_ids))
        except ValueError:
            # The tokenizer knows more tokens than the model, which will not sample those.
            return LLTokenizer(content, eos_token=list(eos_token_ids))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be used for structured output: {error}", field="model") from error


def compile_grammar(tokenizer: LLTokenizer, grammar: str) -> LLMatcher:
    """A matcher at the start of an output. Raises QuireError with llguidance's reason; releases the GIL."""
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(
        max_grammar_size=_MAX_GRAMMAR_SIZE, max_lexer_states=_MAX_LEXER_STATES, verbose_errors=False
    )
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
    if matcher.is_error():
        raise QuireError(reason_of(matcher))
    return matcher


def reason_of(matcher: LLMatcher) -> str:
    """Why a matcher failed, without the parser's inner state that may follow."""
    return matcher.get_error().split("\n<state>", maxsplit=1)[0].strip()
