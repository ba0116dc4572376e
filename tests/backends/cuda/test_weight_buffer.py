"""Weights packed in one buffer keep their values, shared storages and alignment, and follow changes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fx_partition.backends.cuda.weight_buffer import ALIGNMENT, Pack
from fx_partition.common.errors import PartitionError

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.int64, torch.bool, torch.complex64)


@st.composite
def weights(draw: st.DrawFn) -> list[Tensor]:
    """Tensors that own their storages, and views of them: slices, transposes, expansions, nothing at all."""
    found: list[Tensor] = []
    for _ in range(draw(st.integers(1, 4))):
        rows, columns = draw(st.integers(0, 40)), draw(st.integers(0, 40))
        base = torch.randint(0, 2, (rows, columns)).to(draw(st.sampled_from(DTYPES)))
        start = draw(st.integers(0, rows))
        views = [base, base.t(), base[start:], base[:, ::2], base[start:, 1:], base.unsqueeze(0).expand(3, -1, -1)]
        found += draw(st.lists(st.sampled_from(views), min_size=1, max_size=4))
    return draw(st.permutations(found))


@settings(max_examples=200, deadline=None)
@given(weights())
def test_packed_weights_are_the_weights(tensors: list[Tensor]) -> None:
    pack = Pack(tensors, CPU)
    for packed, tensor in zip(pack.tensors, tensors, strict=True):
        assert torch.equal(packed, tensor)
        assert (packed.dtype, packed.stride()) == (tensor.dtype, tensor.stride())
        assert packed.untyped_storage().data_ptr() == pack.buffer.untyped_storage().data_ptr()
        assert packed.storage_offset() * packed.element_size() % 16 == (
            tensor.storage_offset() * tensor.element_size() % 16
        )
    for a, packed_a in zip(tensors, pack.tensors, strict=True):
        for b, packed_b in zip(tensors, pack.tensors, strict=True):
            if a.numel() and b.numel():  # views of one storage stay as far apart, and others do not meet
                if a.untyped_storage()._cdata == b.untyped_storage()._cdata:
                    assert packed_a.data_ptr() - packed_b.data_ptr() == a.data_ptr() - b.data_ptr()
                else:
                    assert packed_a.data_ptr() // ALIGNMENT != packed_b.data_ptr() // ALIGNMENT or (
                        pack.buffer.data_ptr() % ALIGNMENT
                    )
    owned = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    assert pack.buffer.numel() <= sum(size + ALIGNMENT for size in owned.values())


def test_only_the_bytes_that_are_read_are_packed() -> None:
    whole = torch.randn(1024, 64)  # 256 bytes a row
    pack = Pack([whole[512:516], whole[518:520]], CPU)
    assert pack.buffer.numel() == 8 * 256
    odd = Pack([whole.view(-1)[1 + 64 * 512 :][:4]], CPU)
    assert odd.buffer.numel() == 20 and odd.tensors[0].storage_offset() == 1


def test_tied_weights_are_packed_once() -> None:
    weight = torch.nn.Parameter(torch.randn(64, 64))
    pack = Pack([weight, weight, weight.t()], CPU)
    assert pack.buffer.numel() == 64 * 64 * 4
    pack.tensors[0][3, 5] = 7
    assert pack.tensors[1][3, 5] == pack.tensors[2][5, 3] == 7 != weight[3, 5]
    assert not pack.tensors[0].requires_grad


def test_no_weights_make_an_empty_pack() -> None:
    pack = Pack([], CPU)
    assert pack.tensors == () and pack.buffer.numel() == 0 and not pack.stale


def test_what_is_written_is_copied_again_and_only_that() -> None:
    written, kept = torch.zeros(8), torch.zeros(8)
    pack = Pack([written, kept, written[4:]], CPU)
    pack.tensors[1].fill_(5)  # a stage's own writes stay
    assert not pack.stale
    written.fill_(1)
    assert pack.stale and pack.tensors[2].sum() == 0
    pack.refresh()
    assert not pack.stale
    assert [tensor.sum().item() for tensor in pack.tensors] == [8, 40, 4]


def test_weights_packed_under_inference_mode_can_be_refreshed_outside() -> None:
    weight = torch.zeros(4)
    with torch.inference_mode():
        pack = Pack([weight, torch.ones(4)], CPU)
    weight.add_(2)
    pack.refresh()
    assert pack.tensors[0].tolist() == [2] * 4 and pack.tensors[1].tolist() == [1] * 4


def test_a_weight_without_a_storage_is_refused() -> None:
    with pytest.raises(PartitionError, match="cannot be packed"):
        Pack([torch.eye(4).to_sparse()], CPU)
