"""From what clients ask for to a grammar, or to an error that says what cannot be enforced."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from llguidance import LLMatcher, LLTokenizer
from support.fake_scheduler import VOCAB_SIZE, FakeScheduler, Pause
from support.gateway_fixtures import sse_events

from quire.errors import InvalidRequestError, OverloadedError
from quire.gateway.structured.compiler import MAX_CONSTRAINT_LENGTH, GrammarCompiler
from quire.gateway.structured.grammars import json_options
from quire.grammars import compile_grammar, load_grammar_tokenizer
from quire.internal.v1 import scheduler_pb2
from quire.sampling_params import SamplingParams
from quire.structured_outputs import StructuredOutputs

pytestmark = pytest.mark.asyncio(loop_scope="module")

EOS = (0, 2)
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def compiler(model_folder: Path) -> AsyncIterator[GrammarCompiler]:
    compiler = GrammarCompiler(model_folder / "tokenizer.json", VOCAB_SIZE, EOS)
    yield compiler
    await compiler.close()


@pytest.fixture(scope="module")
def grammar_tokenizer(model_folder: Path) -> LLTokenizer:
    return load_grammar_tokenizer(model_folder / "tokenizer.json", VOCAB_SIZE, EOS)


class Language:
    """The texts that a grammar matches."""

    def __init__(self, tokenizer: LLTokenizer, grammar: str) -> None:
        self._tokenizer = tokenizer
        self._start = compile_grammar(tokenizer, grammar)

    def __contains__(self, text: str) -> bool:
        matcher: LLMatcher = self._start.deep_copy()
        token_ids = self._tokenizer.tokenize_str(text, parse_special=True)
        return matcher.validate_tokens(token_ids) == len(token_ids) and (
            matcher.consume_tokens(token_ids) and matcher.is_accepting()
        )


async def language(compiler: GrammarCompiler, tokenizer: LLTokenizer, **constraint: Any) -> Language:
    return Language(tokenizer, await compiler.compile(StructuredOutputs(**constraint)))


async def test_a_schema(compiler: GrammarCompiler, grammar_tokenizer: LLTokenizer) -> None:
    for schema in (PERSON, json.dumps(PERSON)):
        texts = await language(compiler, grammar_tokenizer, json=schema)
        assert '{"name": "Zoë", "age": 7}' in texts
        assert '{"name":"x",\n        "age":7}' in texts
        for wrong in ('{"name": "x"}', '{"name": "x", "age": "7"}', '{"name": "x", "age": 7, "b": 1}', "[]", ""):
            assert wrong not in texts


async def test_white_space_is_bounded(compiler: GrammarCompiler, grammar_tokenizer: LLTokenizer) -> None:
    texts = await language(compiler, grammar_tokenizer, json_object=True)
    assert '{"a": 1}' in texts
    assert '{\n\t"a": {\n' + " " * 32 + '"b": null}}' in texts
    for space in ("  ", "\n\n", "\n" + " " * 33, "\r\n"):
        assert f'{{{space}"a": 1}}' not in texts
    compact = await language(compiler, grammar_tokenizer, json_object=True, disable_any_whitespace=True)
    assert '{"a":1,"b":[true]}' in compact
    assert '{"a": 1}' not in compact


async def test_what_is_as_tight_as_validators_want_it(
    compiler: GrammarCompiler, grammar_tokenizer: LLTokenizer
) -> None:
    closed = {"properties": {"a": {}, "b": {}}, "required": ["a", "b"], "additionalProperties": False}
    required = {"properties": {"a": {}, "b": {}}, "required": ["a", "b"]}
    for schema in ({"minProperties": 2, **closed}, {"minProperties": 2, **required}):
        texts = await language(compiler, grammar_tokenizer, json={"type": "object", **schema})
        assert '{"a": 1, "b": 2}' in texts and '{"a": 1}' not in texts and '{"a": 1, "a": 2}' not in texts
    halves = await language(compiler, grammar_tokenizer, json={"type": "number", "multipleOf": 0.5})
    assert "1.5" in halves and "1.25" not in halves
    data = await language(compiler, grammar_tokenizer, json={"const": {"minProperties": 5, "multipleOf": 0.1}})
    assert '{"minProperties": 5, "multipleOf": 0.1}' in data


async def test_control_characters(compiler: GrammarCompiler, grammar_tokenizer: LLTokenizer) -> None:
    texts = await language(compiler, grammar_tokenizer, json={"const": "a\x00\n"})
    assert r'"a\u0000\n"' in texts and r'"a\n"' not in texts


async def test_any_json_object(compiler: GrammarCompiler, grammar_tokenizer: LLTokenizer) -> None:
    texts = await language(compiler, grammar_tokenizer, json_object=True)
    assert "{}" in texts and '{"a": [1, {"b": null}]}' in texts
    for wrong in ("[]", "1", '"a"', "null", "{"):
        assert wrong not in texts
    anything = await language(compiler, grammar_tokenizer, json=True)
    assert "[]" in anything and "null" in anything


@pytest.mark.parametrize(
    ("regex", "matches", "others"),
    [
        (r"[a-c]+\d", ["abc1"], ["abc", "1", "abc12"]),
        (r"^ab$", ["ab"], ["^ab$", "abc"]),
        (r"^a|b$", ["a", "b"], ["ab"]),
        (r"cost: \$", ["cost: $"], ["cost: "]),
        (r"a\\$", ["a\\"], ["a\\$"]),
        ("a/b\n", ["a/b\n"], ["a/b"]),
    ],
)
async def test_a_regex_matches_the_whole_output(
    compiler: GrammarCompiler, grammar_tokenizer: LLTokenizer, regex: str, matches: list[str], others: list[str]
) -> None:
    texts = await language(compiler, grammar_tokenizer, regex=regex)
    assert all(text in texts for text in matches)
    assert not any(text in texts for text in others)


async def test_choices_are_exact(compiler: GrammarCompiler, grammar_tokenizer: LLTokenizer) -> None:
    """Also where one begins another, and whatever the characters mean to a grammar."""
    choices = ["a", "ab", "a|b", 'say "x"', "\\n", "/x/", "\n\t\x00\x7f\u2028", "é😀", "start: x", "(", ""]
    texts = await language(compiler, grammar_tokenizer, choice=choices)
    assert all(choice in texts for choice in choices)
    for wrong in ("b", "aba", "say ", "\n", "x", "A"):
        assert wrong not in texts


async def test_lark_and_gbnf(compiler: GrammarCompiler, grammar_tokenizer: LLTokenizer) -> None:
    lark = 'start: "1" op "2"\nop: "+" | "::="'
    gbnf = 'root ::= "1" op "2"\nop ::= "+" | "-"'
    assert "1::=2" in await language(compiler, grammar_tokenizer, grammar=lark)
    texts = await language(compiler, grammar_tokenizer, grammar=gbnf)
    assert "1-2" in texts and "1::=2" not in texts


async def test_lark_with_a_schema_and_special_tokens(compiler: GrammarCompiler, grammar_tokenizer: LLTokenizer) -> None:
    """What tool calls are made of."""
    schema = {**PERSON, "x-guidance": json_options()}
    lark = f'start: <|im_start|> "call " body <|im_start|>\nbody: %json {json.dumps(schema)}'
    texts = await language(compiler, grammar_tokenizer, grammar=lark)
    assert '<|im_start|>call {"name": "x", "age": 1}<|im_start|>' in texts
    assert '<|im_start|>call {"name":  "x", "age": 1}<|im_start|>' not in texts
    assert 'call {"name": "x", "age": 1}' not in texts


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"json": {"not": {}}}, "json", '"not"'),
    ({"json": {"properties": {"a": {"type": "array", "uniqueItems": True}}}}, "json", '"uniqueItems"'),
    ({"json": {"not": {}, "x-guidance": {"lenient": True}}}, "json", '"not"'),
    ({"json": {"oneOf": [{"type": "string"}, {"minLength": 3}]}}, "json", "oneOf"),
    ({"json": {"type": "string", "format": "surprise"}}, "json", "Unknown format: surprise"),
    ({"json": {"$ref": "http://example.com/x"}}, "json", "http://example.com/x"),
    ({"json": {"type": "integer", "minimum": 3, "maximum": 2}}, "json", "minimum (3) is greater than maximum"),
    ({"json": {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}}, "json", "nothing matches it"),
    ({"json": {"minProperties": 2}}, "json", '"minProperties"'),
    ({"json": {"items": {"patternProperties": {"^a": {}}, "minProperties": 3}}}, "json", '"minProperties"'),
    ({"json": {"properties": {"a": {"multipleOf": 0.01}}}}, "json", '"multipleOf"'),
    ({"json": {"properties": {"a\nb": {}}}}, "json", '"properties"'),
    ({"json": {"items": {"$id": "http://example.com/", "$ref": "x.json"}}}, "json", '"$id" beside "$ref"'),
    ({"json": False}, "json", "`false`"),
    ({"json": "[1]"}, "json", "an object or a boolean"),
    ({"json": "{"}, "json", "not valid JSON"),
    ({"json": '{"minimum": NaN}'}, "json", "not valid JSON"),
    ({"json": '{"items":' * 5000 + "{}" + "}" * 5000}, "json", "recursion"),
    ({"regex": "a("}, "regex", "unclosed group"),
    ({"regex": "a(?=b)"}, "regex", "look-ahead"),
    ({"regex": "a\ud800"}, "regex", "not valid Unicode"),
    ({"regex": "a" * (MAX_CONSTRAINT_LENGTH + 1)}, "regex", f"at most {MAX_CONSTRAINT_LENGTH}"),
    ({"grammar": "start: missing"}, "grammar", "missing"),
    ({"grammar": "start: <|missing|>"}, "grammar", "<|missing|>"),
    ({"grammar": 'root ::= "a" ('}, "grammar", "GBNF"),
    ({"grammar": "start: " + "(" * 5000}, "grammar", "deeply nested"),
]


@pytest.mark.parametrize(("constraint", "kind", "message"), REFUSED)
async def test_what_cannot_be_enforced_is_named(
    compiler: GrammarCompiler, constraint: dict[str, Any], kind: str, message: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await compiler.compile(StructuredOutputs(**constraint))
    assert caught.value.field == f"structured_outputs.{kind}"
    assert caught.value.message.startswith(f"structured_outputs.{kind} ")
    assert message in caught.value.message


def nested(depth: int) -> str:
    return "start: x0\n" + "".join(f'x{i}: "a" x{i + 1}\n' for i in range(depth)) + f'x{depth}: "b"'


@pytest.mark.parametrize(
    "constraint",
    [{"grammar": nested(2000)}, {"json": {"type": "integer", "multipleOf": 999983}}],
    ids=["fills the stack", "takes minutes"],
)
async def test_what_would_kill_a_process_or_keep_it_busy_is_too_complex(
    compiler: GrammarCompiler, constraint: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequestError, match="too complex") as caught:
        await compiler.compile(StructuredOutputs(**constraint))
    assert caught.value.field == f"structured_outputs.{next(iter(constraint))}"
    assert await compiler.compile(StructuredOutputs(regex="after it")), "the next one finds a new process"


async def test_a_cancelled_compile_leaves_no_answer_for_the_next(
    compiler: GrammarCompiler, grammar_tokenizer: LLTokenizer
) -> None:
    task = asyncio.create_task(compiler.compile(StructuredOutputs(regex="cancelled")))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert "next" in await language(compiler, grammar_tokenizer, regex="next")


async def test_no_more_than_some_wait(compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quire.gateway.structured.compiler._MAX_WAITING", 2)
    patterns = ("first", "second", "third", "first")
    outcomes = await asyncio.gather(
        *(compiler.compile(StructuredOutputs(regex=pattern)) for pattern in patterns), return_exceptions=True
    )
    assert isinstance(outcomes[2], OverloadedError)
    assert outcomes[0] == outcomes[3], "what waits already is waited for"
    assert await compiler.compile(StructuredOutputs(regex="third"))


async def test_a_refusal_is_remembered(model_folder: Path) -> None:
    compiler = GrammarCompiler(model_folder / "tokenizer.json", VOCAB_SIZE, EOS)
    with pytest.raises(InvalidRequestError) as first:
        await compiler.compile(StructuredOutputs(regex="("))
    await compiler.close()
    # The process is gone, and is not asked.
    with pytest.raises(InvalidRequestError) as second:
        await compiler.compile(StructuredOutputs(regex="("))
    assert (second.value.message, second.value.field) == (first.value.message, first.value.field)


async def test_equal_constraints_are_compiled_once(model_folder: Path) -> None:
    compiler = GrammarCompiler(model_folder / "tokenizer.json", VOCAB_SIZE, EOS)
    outputs = StructuredOutputs(json=PERSON)
    grammars = await asyncio.gather(*(compiler.compile(outputs) for _ in range(5)))
    await compiler.close()
    # The process is gone, and is not asked.
    assert [await compiler.compile(outputs)] * 5 == grammars


async def test_a_model_without_a_tokenizer_json_or_an_end(model_folder: Path) -> None:
    for compiler, message in (
        (GrammarCompiler(None, VOCAB_SIZE, EOS), "tokenizer.json"),
        (GrammarCompiler(model_folder / "tokenizer.json", VOCAB_SIZE, ()), "end-of-sequence"),
    ):
        with pytest.raises(InvalidRequestError, match=message):
            await compiler.compile(StructuredOutputs(regex="a"))


COMPLETION = {"model": "tiny", "prompt": "hello", "max_tokens": 4}
SCHEMA_FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
ASKED: list[dict[str, Any]] = [
    {"response_format": {"type": "json_object"}},
    {"response_format": SCHEMA_FORMAT},
    {"structured_outputs": {"json": PERSON}},
    {"structured_outputs": {"choice": ["a", "b"], "disable_any_whitespace": True}},
    {"guided_json": PERSON},
    {"guided_json": json.dumps(PERSON)},
    {"guided_regex": "a+"},
    {"guided_choice": ["a", "b"]},
    {"guided_grammar": 'start: "a"'},
]


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_a_grammar_reaches_the_scheduler(
    http: httpx.AsyncClient, scheduler: FakeScheduler, path: str, asked: dict[str, Any], grammar_tokenizer: LLTokenizer
) -> None:
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    body = COMPLETION if path == "/v1/completions" else chat
    answer = await http.post(path, json={**body, **asked, "ignore_eos": True})
    assert answer.status_code == 200, answer.text
    (request,) = scheduler.requests
    compile_grammar(grammar_tokenizer, request.message.constraints.grammar)
    assert not request.params.ignore_eos, "the end of the grammar ends the output"
    assert not request.params.HasField("structured_outputs"), "it travels compiled"


NAMED: list[tuple[dict[str, Any], str]] = [
    (
        {"response_format": {**SCHEMA_FORMAT, "json_schema": {"name": "x", "schema": {"not": {}}}}},
        "response_format.json_schema.schema",
    ),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"response_format": {"type": "json_object", "json_schema": {"name": "x", "schema": {}}}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, "response_format.json_schema.name"),
    ({"response_format": {"type": "structural_tag"}}, "response_format.type"),
    ({"response_format": "json"}, "response_format"),
    ({"structured_outputs": {}}, "structured_outputs"),
    ({"structured_outputs": {"json": {"not": {}}}}, "structured_outputs.json"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
    ({"structured_outputs": {"regex": 5}}, "structured_outputs.regex"),
    ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
    ({"guided_json": {"not": {}}}, "guided_json"),
    ({"guided_regex": "("}, "guided_regex"),
    ({"guided_choice": []}, "guided_choice"),
    ({"guided_grammar": "start: x"}, "guided_grammar"),
    ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex"),
    ({"guided_regex": "a", "min_tokens": 1}, "min_tokens"),
]


@pytest.mark.parametrize(("asked", "param"), NAMED)
async def test_errors_name_the_clients_field(
    http: httpx.AsyncClient, scheduler: FakeScheduler, asked: dict[str, Any], param: str
) -> None:
    for stream in (False, True):
        answer = await http.post("/v1/completions", json={**COMPLETION, **asked, "stream": stream})
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert error["param"] == param, error
        assert param.rpartition(".")[2] in error["message"]
    assert scheduler.requests == []


@pytest.mark.parametrize("stream", [False, True])
async def test_a_sequence_that_cannot_go_on_is_an_error(
    http: httpx.AsyncClient, scheduler: FakeScheduler, stream: bool
) -> None:
    scheduler.script = lambda request, index: [70, Pause(asyncio.Event())]
    body = {**COMPLETION, "guided_regex": "a+", "stream": stream}
    asking = asyncio.create_task(http.post("/v1/completions", json=body))
    (request,) = await scheduler.wait_requests()
    failure = scheduler_pb2.RequestFailed(request_key=request.message.request_key, message="no way on")
    scheduler.send(scheduler_pb2.StepOutputs(failed=[failure]))
    answer = await asking
    assert answer.status_code == (200 if stream else 500)
    error = sse_events(answer.text)[-1] if stream else answer.json()
    assert error["error"]["message"] == "no way on", "the last frame: no [DONE] after it"
    assert error["error"]["type"] == "server_error"
    assert scheduler.aborts == []


@pytest.mark.parametrize(
    "others", [{"min_tokens": 1}, {"allowed_token_ids": [5]}, {"bad_words": ["x"]}, {"use_beam_search": True}]
)
async def test_what_could_leave_nothing_to_sample_is_refused(others: dict[str, Any]) -> None:
    from quire.gateway.structured.rules import check_combination

    params = SamplingParams(structured_outputs=StructuredOutputs(regex="a"), stop=["x"], **others)
    with pytest.raises(InvalidRequestError) as caught:
        check_combination(params)
    assert caught.value.field == next(iter(others))


async def test_a_format_without_a_schema_takes_any_json(http: httpx.AsyncClient, scheduler: FakeScheduler) -> None:
    asked = {"type": "json_schema", "json_schema": {"name": "anything"}}
    answer = await http.post("/v1/completions", json={**COMPLETION, "response_format": asked})
    assert answer.status_code == 200, answer.text
    assert scheduler.requests[0].message.constraints.grammar
