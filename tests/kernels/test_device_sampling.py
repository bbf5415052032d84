"""What sampling copies to a device and back, on a CPU: the columns, the checks, and results in one tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.sampling import make_batch

from quire import kernels
from quire.kernels import SAMPLING_ROW, DeviceSampledTokens
from quire.kernels.device_sampling import Columns, pack

DEVICE = torch.device("cpu")


def columns_of(*plans: dict[str, Any]) -> Columns:
    words, find = pack(make_batch(plans, 40), 40)
    return find(torch.from_numpy(words))


def test_a_batch_of_plain_rows_is_its_rows() -> None:
    batch = make_batch([{"seed": 2**63 + 5}, {"temperature": 0.0}], 40)
    columns = columns_of({"seed": 2**63 + 5}, {"temperature": 0.0})
    rows = columns.rows.numpy().view(SAMPLING_ROW)[:, 0]
    assert np.array_equal(rows["seed"], batch.rows["seed"])
    assert np.array_equal(rows["temperature"], batch.rows["temperature"])
    assert rows["token_row"].tolist() == [-1, -1]
    others = [getattr(columns, name) for name in Columns.__slots__ if name != "rows"]
    assert all(column is None for column in others)


def test_columns_are_aligned_and_say_what_the_batch_says() -> None:
    plans = [{"bias": {3: 1.5, 4: -2.0}, "num_logprobs": 2}, {"banned": [7], "min_tokens": 4}, {"allowed": [1, 33]}]
    columns = columns_of(*plans)
    assert columns.bias_starts.tolist() == [0, 2, 2, 2]
    assert columns.bias_ids.tolist() == [3, 4]
    assert columns.bias_values.view(torch.float32).tolist() == [1.5, -2.0]
    assert columns.banned_starts.tolist() == [0, 0, 1, 1]
    assert columns.banned_ids.tolist() == [7]
    assert columns.masks.tolist() == [[2, 2]]
    assert columns.reported.tolist() == [0]
    first = columns.rows.data_ptr()
    columns_there = [getattr(columns, name) for name in Columns.__slots__ if getattr(columns, name) is not None]
    assert all((column.data_ptr() - first) % 16 == 0 for column in columns_there)


def test_bans_that_have_ended_are_not_staged() -> None:
    assert columns_of({"banned": [7], "min_tokens": 1, "output": [9]}).banned_starts is None


def test_histories_are_those_that_penalties_read() -> None:
    """With the prompt for repetition, the output alone for the others; none for rows without."""
    tokens = {"prompt": [1, 2, 3], "output": [4, 5]}
    columns = columns_of({}, tokens | {"repetition_penalty": 1.2}, tokens | {"presence_penalty": 1.0})
    assert columns.histories.tolist() == [[0, 3, 5, 0], [5, 5, 7, 0]]
    assert columns.token_ids.tolist() == [1, 2, 3, 4, 5, 4, 5]
    assert columns.rows.numpy().view(SAMPLING_ROW)[:, 0]["token_row"].tolist() == [-1, 0, 1]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"token_row": 5}, r"rows\[0\] names tokens"),
        ({"num_tokens": 99}, r"rows\[0\] names tokens"),
        ({"num_prompt_tokens": 9}, r"rows\[0\] names tokens"),
        ({"mask_row": 0}, "outside allowed_masks"),
    ],
)
def test_rows_that_name_what_is_not_there(damage: dict[str, int], message: str) -> None:
    batch = make_batch([{}], 9)
    for name, value in damage.items():
        batch.rows[name] = value
    with pytest.raises(ValueError, match=message):
        pack(batch, 9)


@pytest.mark.parametrize("fields", [{"bias": {9: 1.0}}, {"banned": [-1]}], ids=str)
def test_ids_outside_the_vocabulary(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="outside the vocabulary"):
        pack(make_batch([fields], 9), 9)


@pytest.mark.parametrize("implementation", ["native", "torch"])
@pytest.mark.parametrize("num_logprobs", [-1, 0, 3])
def test_results_survive_the_way_to_a_device_and_back(implementation: str, num_logprobs: int) -> None:
    kernels.set_implementation(implementation)  # type: ignore[arg-type]
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    batch = make_batch([{"seed": i, "num_logprobs": num_logprobs} for i in range(4)] + [{"allowed": []}], 40)
    expected = kernels.sample(logits.clone(), batch)
    sampled = kernels.sample_on_device(logits, batch, kernels.stage_and_wait(DEVICE))
    assert sampled.num_top == num_logprobs
    assert len(sampled.words) == DeviceSampledTokens.num_words(5, num_logprobs)
    assert sampled.token_ids.tolist() == expected.token_ids.tolist()
    host = torch.zeros(100, dtype=torch.int32)
    sampled.fetch_into(host)
    fetched = sampled.unpack(host.numpy())
    host.zero_()  # the next step's
    for name in ("token_ids", "impossible", "logprobs", "top_token_ids", "top_logprobs"):
        wanted, found = getattr(expected, name), getattr(fetched, name)
        assert (wanted is None) == (found is None)
        if wanted is not None:
            assert found.dtype == wanted.dtype
            assert np.array_equal(found, wanted)
            assert np.array_equal(getattr(sampled, name).numpy(), wanted)
