"""Work in parts: every row once, in order, and no part larger than asked for."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from vaerobust.batches import blockwise, slices


@given(st.integers(0, 200), st.integers(1, 250))
def test_slices_cut_a_range_into_runs(total, size):
    parts = list(slices(total, size))
    assert [i for part in parts for i in range(total)[part]] == list(range(total))
    assert all(0 < part.stop - part.start <= size for part in parts)
    assert all(part.stop - part.start == size for part in parts[:-1])


@given(st.integers(1, 12), st.integers(1, 30), st.integers(1, 50), st.sampled_from([torch.float32, torch.float64]))
def test_blocks_fill_every_element_and_none_is_too_large(n, samples, rows, dtype):
    values = torch.arange(n * samples, dtype=dtype).reshape(n, samples)
    sizes = []

    def block(i, j):
        sizes.append(values[i, j].numel())
        return values[i, j]

    found = blockwise(block, n, samples, values, rows)
    assert torch.equal(found, values)
    assert found.dtype == dtype
    assert max(sizes) <= rows
    assert sum(sizes) == n * samples
