"""Random prompts: lengths, the shared prefix, and that they repeat with their seed."""

from __future__ import annotations

import pytest

from quire.bench.prompts import find_vocab_size, random_requests
from quire.bench.settings import ServeBenchSettings
from quire.config import BUNDLED_MODEL
from quire.errors import InvalidRequestError, StartupError


def _requests(**given):
    return random_requests(ServeBenchSettings.load({"num_prompts": 50, "random_input_len": 20, **given}), 300)


def test_lengths_are_exact_without_a_range():
    requests = _requests(random_output_len=7)
    assert len(requests) == 50
    assert {len(request.prompt) for request in requests} == {20}
    assert {request.output_len for request in requests} == {7}
    assert all(0 <= token_id < 300 for request in requests for token_id in request.prompt)


def test_a_range_spreads_lengths_to_both_ends():
    lengths = {len(request.prompt) for request in _requests(random_range_ratio=0.25, num_prompts=500)}
    assert lengths == set(range(15, 26))


def test_the_prefix_is_shared_by_all_but_the_warm_ups():
    *warmups, _ = requests = _requests(random_prefix_len=10, num_warmups=3)
    prefixes = [tuple(request.prompt[:10]) for request in requests]
    assert len(set(prefixes[3:])) == 1
    assert not set(prefixes[:3]) & set(prefixes[3:])
    assert {len(request.prompt) for request in warmups} == {30}


def test_the_seed_decides():
    assert _requests(seed=1) == _requests(seed=1)
    assert _requests(seed=1) != _requests(seed=2)


def test_the_vocabulary_of_a_folder_and_of_the_bundled_model(tmp_path):
    (tmp_path / "config.json").write_text('{"vocab_size": 77}')
    assert find_vocab_size(str(tmp_path)) == 77
    assert find_vocab_size("quire-tiny") == find_vocab_size(str(BUNDLED_MODEL)) > 300
    with pytest.raises(InvalidRequestError, match="--vocab-size"):
        find_vocab_size("somebody/else")


@pytest.mark.parametrize(
    "given",
    [
        {"percentile_metrics": "ttft,nonsense"},
        {"metric_percentiles": "101"},
        {"metric_percentiles": "many"},
        {"request_rate": 0},
        {"plot": "run.pdf"},
        {"random_range_ratio": 1},
    ],
)
def test_a_wrong_flag_is_named(given):
    (name,) = given
    with pytest.raises(StartupError, match="--" + name.replace("_", "-")):
        ServeBenchSettings.load(given)
