"""Counts and shares in words: none, some and all each read as a sentence should."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaerobust.page.words import listed, of_all, percent, with_interval


@pytest.mark.parametrize(
    ("count", "total", "words"),
    [
        (0, 300, "none of the 300 pairs"),
        (1, 300, "1 of the 300 pairs"),
        (1200, 10_000, "1,200 of the 10,000 pairs"),
        (300, 300, "all 300 pairs"),
    ],
)
def test_a_count_says_none_and_all(count, total, words):
    assert of_all(count, total, "pairs") == words


@given(st.integers(1, 10_000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_the_words_hold_the_count(pair):
    count, total = pair
    numbers = [int(found.replace(",", "")) for found in re.findall(r"[\d,]+", of_all(count, total, "images"))]
    assert numbers == ([total] if count in (0, total) else [count, total])


@pytest.mark.parametrize(("count", "total"), [(-1, 3), (4, 3), (0, 0)])
def test_a_count_beyond_all_is_refused(count, total):
    with pytest.raises(ValueError, match=f"count must be from 0 to total.* {count} and {total}"):
        of_all(count, total, "images")


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (0, "0 %"),
        (0.004, "less than 1 %"),
        (0.01, "1 %"),
        (0.209, "21 %"),
        (0.996, "more than 99 %"),
        (1.0, "100 %"),
    ],
)
def test_a_share_is_none_or_all_only_where_it_is_exactly(share, words):
    assert percent(share) == words


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_beyond_all_is_refused(share):
    with pytest.raises(ValueError, match="share must be in"):
        percent(share)


@pytest.mark.parametrize(("items", "words"), [(["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")])
def test_a_list_reads_as_a_sentence_does(items, words):
    assert listed(items) == words


def test_an_empty_list_is_refused():
    with pytest.raises(ValueError, match="items must hold at least one"):
        listed([])


def test_a_value_stands_before_its_interval():
    assert with_interval((0.8631, 0.8223, 0.9067)) == "0.86 (0.82 to 0.91)"
