"""The posterior against brute force: integration over the rate, and simulation of whole searches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate

from elpo.algorithms.confidence import critical_posterior

ANCHORS = st.lists(
    st.integers(0, 5).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), min_size=1, max_size=6
)


@settings(max_examples=40)
@given(ANCHORS)
def test_it_is_the_integral_over_every_rate(anchors):
    drawn, successes = zip(*anchors, strict=True)
    weights = []
    for critical in range(1, len(drawn) + 1):

        def likelihood(rate, critical=critical):
            product = 1.0
            for anchor, (n, s) in enumerate(zip(drawn, successes, strict=True)):
                chance = rate if anchor < critical else 0.0
                product *= chance**s * (1 - chance) ** (n - s)
            return product

        weights.append(integrate.quad(likelihood, 0, 1)[0])
    expected = np.array(weights) / sum(weights)
    assert critical_posterior(drawn, successes) == pytest.approx(expected, abs=1e-6)


def test_it_is_calibrated_on_worlds_it_describes():
    rng = np.random.default_rng(0)
    said, true = [], []
    for _ in range(3000):
        num = int(rng.integers(1, 7))
        critical, rate = int(rng.integers(1, num + 1)), rng.random()
        drawn = rng.integers(0, 4, num)
        chances = np.where(np.arange(num) < critical, rate, 0.0)
        posterior = critical_posterior(drawn.tolist(), rng.binomial(drawn, chances).tolist())
        said.append(posterior.max())
        true.append(posterior.argmax() + 1 == critical)
    said, true = np.array(said), np.array(true)
    for low in (0.2, 0.4, 0.6, 0.8):
        inside = (said >= low) & (said < low + 0.2)
        assert true[inside].mean() == pytest.approx(said[inside].mean(), abs=0.05)


def test_many_draws_do_not_underflow():
    posterior = critical_posterior([0, 5000, 5000, 0], [0, 2500, 0, 0])
    assert posterior == pytest.approx([0, 1, 0, 0], abs=1e-9)


def test_wrong_counts_are_refused():
    for drawn, successes in [([], []), ([1], [1, 0]), ([1], [2]), ([1], [-1])]:
        with pytest.raises(ValueError, match=r"counts|successes"):
            critical_posterior(drawn, successes)
