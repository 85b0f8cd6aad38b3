"""The bootstrap interval that the chapters share."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from vaerobust.page.intervals import over_images
from vaerobust.page.words import DATASETS
from vaerobust.zoo import data


def ratio(a, b, axis=-1):
    return a.mean(axis) / b.mean(axis)


def test_interval_is_that_of_scipy_for_columns_resampled_together():
    columns = np.random.default_rng(0).exponential(size=(2, 40))
    value, low, high = over_images(ratio, *columns, resamples=200, confidence=0.9, seed=3)
    settings = {"paired": True, "n_resamples": 200, "confidence_level": 0.9, "method": "percentile", "rng": 3}
    ends = stats.bootstrap(columns, ratio, **settings).confidence_interval
    assert value == ratio(*columns)
    assert (low, high) == pytest.approx((ends.low, ends.high), rel=1e-12)


def test_images_are_the_last_axis():
    table = np.arange(12.0).reshape(3, 4)
    value, low, high = over_images(lambda part: part.sum(axis=0).mean(), table)
    assert value == table.sum(axis=0).mean()
    assert low < value < high


def test_interval_holds_a_value_that_no_resample_reaches():
    value, low, high = over_images(lambda images: float(len(set(images))), np.arange(50))
    assert value == high == 50
    assert low < 45


def test_every_data_set_has_a_name():
    assert set(DATASETS) == set(data.DATASETS)
