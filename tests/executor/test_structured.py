"""Masks from grammars: what is allowed, after which tokens, and what happens when a grammar cannot go on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from support.checkpoints import EOS_ID, make_checkpoint
from support.step_driver import StepDriver, greedy, load, prompt_of

from quire.columns import pack_u32, unpack_u32
from quire.executor.model import Model
from quire.executor.sequence import SequenceTable
from quire.executor.structured import GrammarTable, StepMasks
from quire.internal.v1 import executor_pb2

VOCAB_SIZE = 320  # of the model; the tokenizer has 258
PROMPT = prompt_of(9)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(make_checkpoint(tmp_path_factory.mktemp("model"), "llama"))


@pytest.fixture
def driver(model: Model, tmp_path: Path) -> StepDriver:
    return StepDriver(model, tmp_path)


@pytest.fixture(scope="module")
def byte_ids(model: Model) -> dict[str, int]:
    """Token ids of characters; the tokenizer has one for each byte."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model.folder / "tokenizer.json"))
    return {chr(code): tokenizer.encode(chr(code)).ids[0] for code in range(128)}


class Slots:
    """A table and the sequences it reads, without a model."""

    def __init__(self, model: Model) -> None:
        self.sequences = SequenceTable(VOCAB_SIZE)
        self.table = GrammarTable(VOCAB_SIZE, model.folder / "tokenizer.json")

    def put(self, slot: int, grammar: str, output: Iterable[int] = (), *, eos: tuple[int, ...] = (EOS_ID,)) -> None:
        new = executor_pb2.NewSequence(
            slot=slot,
            prompt_token_ids=pack_u32(PROMPT),
            output_token_ids=pack_u32(output),
            eos_token_ids=pack_u32(eos),
            constraints=executor_pb2.Constraints(grammar=grammar),
        )
        self._apply(executor_pb2.StepPlan(new_sequences=[new]))

    def finish(self, slot: int) -> None:
        self._apply(executor_pb2.StepPlan(finished_slots=pack_u32([slot])))

    def append(self, slot: int, token_id: int) -> None:
        self.sequences.append(np.array([slot]), np.array([token_id], np.int32))

    def masks(self, *slots: int) -> StepMasks:
        wait = self.table.begin(np.array(slots, np.int64), self.sequences)
        assert wait is not None
        return wait()

    def allowed(self, slot: int) -> set[int]:
        masks = self.masks(slot)
        assert not masks.failures
        bits = np.unpackbits(masks.allowed[masks.mask_rows[0]].view(np.uint8), bitorder="little")
        return set(np.flatnonzero(bits).tolist())

    def _apply(self, plan: executor_pb2.StepPlan) -> None:
        self.sequences.apply(plan)
        self.table.apply(plan)


@pytest.fixture
def slots(model: Model) -> Slots:
    return Slots(model)


def test_a_mask_follows_the_tokens(slots: Slots, byte_ids: dict[str, int]) -> None:
    slots.put(3, "start: /ab?/")
    assert slots.allowed(3) == {byte_ids["a"]}
    slots.append(3, byte_ids["a"])
    assert slots.allowed(3) == {byte_ids["b"], EOS_ID}
    slots.append(3, byte_ids["b"])
    assert slots.allowed(3) == {EOS_ID}


def test_tokens_that_only_the_model_has_and_special_ones_are_never_allowed(slots: Slots) -> None:
    slots.put(0, r"start: /(.|\n)*/")
    allowed = slots.allowed(0)
    assert max(allowed - {EOS_ID}) < 256
    assert len(allowed) > 100


def test_any_of_several_end_tokens_may_end(slots: Slots, byte_ids: dict[str, int]) -> None:
    slots.put(0, "start: /a*/", eos=(EOS_ID, 256))
    assert slots.allowed(0) == {byte_ids["a"], EOS_ID, 256}


@pytest.mark.parametrize("end", [EOS_ID, 256])
def test_steps_in_flight_after_the_end_are_harmless(slots: Slots, byte_ids: dict[str, int], end: int) -> None:
    slots.put(0, "start: /a*/", eos=(EOS_ID, 256))
    for token_id in (byte_ids["a"], end, byte_ids["x"], end):
        slots.append(0, token_id)
        masks = slots.masks(0)
        assert not masks.failures
    assert masks.mask_rows.tolist() == [-1], "nothing is asked of what the scheduler drops"


@pytest.mark.parametrize("known", range(4))
def test_a_sequence_that_comes_back_is_replayed(slots: Slots, byte_ids: dict[str, int], known: int) -> None:
    text = [byte_ids[character] for character in "abc"]
    slots.put(0, 'start: "abcd"', output=text[:known])
    assert slots.allowed(0) == {byte_ids["abcd"[known]]}


def test_sequences_with_one_grammar_do_not_share_their_state(slots: Slots, byte_ids: dict[str, int]) -> None:
    for slot in (0, 1):
        slots.put(slot, 'start: "ab"')
    slots.append(0, byte_ids["a"])
    assert slots.allowed(0) == {byte_ids["b"]}
    assert slots.allowed(1) == {byte_ids["a"]}


def test_only_rows_with_a_grammar_have_masks(slots: Slots) -> None:
    slots.put(0, "")
    assert slots.table.begin(np.array([0]), slots.sequences) is None
    slots.put(5, 'start: "a"')
    assert slots.table.begin(np.array([0]), slots.sequences) is None
    assert slots.masks(0, 5).mask_rows.tolist() == [-1, 0]


def test_a_slot_forgets_its_grammar(slots: Slots) -> None:
    slots.put(0, 'start: "a"')
    slots.finish(0)
    slots.put(0, "")
    assert slots.table.begin(np.array([0]), slots.sequences) is None


def test_tokens_that_do_not_match_fail_their_row_alone(slots: Slots, byte_ids: dict[str, int]) -> None:
    slots.put(0, 'start: "ab"', output=[byte_ids["x"]])
    slots.put(1, 'start: "ab"')
    masks = slots.masks(0, 1)
    assert list(masks.failures) == [0]
    assert "doesn't satisfy the grammar" in masks.failures[0]
    assert masks.mask_rows[1] >= 0


def test_a_grammar_that_does_not_compile_fails_its_row(slots: Slots) -> None:
    slots.put(0, "start: missing")
    assert "unknown name" in slots.masks(0).failures[0]


def _constrained(grammar: str) -> executor_pb2.Constraints:
    return executor_pb2.Constraints(grammar=grammar)


def test_what_is_sampled_matches(driver: StepDriver, byte_ids: dict[str, int]) -> None:
    slot = driver.add(
        PROMPT,
        greedy(temperature=1.5, seed=3),
        eos_token_ids=(EOS_ID,),
        constraints=_constrained("start: /[ab]{4}/"),
    )
    *text, end = driver.generate(slot, 5)
    assert set(text) <= {byte_ids["a"], byte_ids["b"]}
    assert end == EOS_ID


def test_steps_ahead_of_results_have_masks_of_tokens_that_only_the_executor_knows(
    model: Model, driver: StepDriver, tmp_path: Path
) -> None:
    fields = {"eos_token_ids": (EOS_ID,), "constraints": _constrained("start: /(ab|cd|ef){2,9}/")}
    params = greedy(temperature=1.5, seed=5)
    expected = driver.generate(driver.add(PROMPT, params, **fields), 6)
    ahead = StepDriver(model, tmp_path)
    slot = ahead.add(PROMPT, params, **fields)
    plans = [ahead.plan({slot: len(PROMPT)}), *(ahead.plan({slot: 1}) for _ in range(5))]
    assert [unpack_u32(ahead.runner.execute(plan).token_ids)[0] for plan in plans] == expected
    again = StepDriver(model, tmp_path)
    slot = again.add(PROMPT, params, output=expected[:3], **fields)
    assert again.generate(slot, 6, chunk=4) == expected


def test_a_free_sequence_samples_the_same_beside_constrained_ones(
    model: Model, driver: StepDriver, tmp_path: Path
) -> None:
    params = greedy(temperature=1.2, seed=7, top_p=0.9, logprobs=3)
    free = driver.add(prompt_of(20), params)
    alone = [driver.run({free: 20 if step == 0 else 1}) for step in range(6)]
    mixed = StepDriver(model, tmp_path)
    free = mixed.add(prompt_of(20), params)
    other = mixed.add(PROMPT, greedy(), eos_token_ids=(EOS_ID,), constraints=_constrained("start: /[ab]*/"))
    for step, expected in enumerate(alone):
        result = mixed.run({other: 9 if step == 0 else 1, free: 20 if step == 0 else 1})
        assert unpack_u32(result.token_ids)[1] == unpack_u32(expected.token_ids)[0]
        assert result.logprobs[0].logprobs == expected.logprobs[0].logprobs


def test_a_failure_names_its_slot_and_the_others_go_on(driver: StepDriver, byte_ids: dict[str, int]) -> None:
    fields = {"eos_token_ids": (EOS_ID,), "constraints": _constrained('start: "ab"')}
    good = driver.add(PROMPT, **fields)
    bad = driver.add(PROMPT, output=[byte_ids["x"]], **fields)
    for num_tokens in ({good: 9, bad: 10}, {good: 1, bad: 1}):
        result = driver.run(num_tokens)
        assert [failure.slot for failure in result.failures] == [bad]
        assert result.failures[0].message.startswith("structured output failed: ")
        assert unpack_u32(result.slots) == [good, bad]
    assert driver.sequences[good].output == [byte_ids["a"], byte_ids["b"]]
