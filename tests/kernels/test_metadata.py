import pytest
import torch

from quire.kernels import AttentionMetadata


def _fields() -> dict[str, torch.Tensor]:
    return {
        "query_start": torch.tensor([0, 1, 4], dtype=torch.int32),
        "context_lens": torch.tensor([9, 3], dtype=torch.int32),
        "block_tables": torch.zeros(2, 3, dtype=torch.int32),
        "slot_mapping": torch.zeros(4, dtype=torch.int64),
    }


def test_derived_numbers():
    metadata = AttentionMetadata(**_fields())
    assert (metadata.num_seqs, metadata.num_tokens) == (2, 4)
    assert metadata.lengths() == ([0, 1, 4], [9, 3])
    assert metadata.lengths() is metadata.lengths()


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("query_start", torch.zeros(3, dtype=torch.int64)),
        ("query_start", torch.zeros(2, dtype=torch.int32)),
        ("context_lens", torch.zeros(2, 1, dtype=torch.int32)),
        ("block_tables", torch.zeros(3, 3, dtype=torch.int32)),
        ("block_tables", torch.zeros(2, 6, dtype=torch.int32)[:, ::2]),
        ("slot_mapping", torch.zeros(4, dtype=torch.int32)),
        ("slot_mapping", torch.zeros(4, dtype=torch.int64, device="meta")),
    ],
)
def test_wrong_tensor_is_named(name: str, wrong: torch.Tensor):
    with pytest.raises(ValueError, match=f"^{name} "):
        AttentionMetadata(**(_fields() | {name: wrong}))


def test_rows_of_a_larger_table():
    table = torch.zeros(8, 16, dtype=torch.int32)
    assert AttentionMetadata(**(_fields() | {"block_tables": table[:2, :3]})).num_seqs == 2
