"""The entropy of the k most likely tokens and the rest, against exact entropies."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from elpo.engines.topk import grouped_entropy


@given(seed=st.integers(0, 10_000), k=st.integers(1, 19), spread=st.floats(0.0, 12.0))
def test_bias_is_that_of_the_rest(seed: int, k: int, spread: float) -> None:
    size = 200
    logits = np.random.default_rng(seed).normal(size=size) * spread
    p = np.sort(np.exp(logits - scipy.special.logsumexp(logits)))[::-1]
    rest = p[k:].sum()
    exact = scipy.stats.entropy(p)
    estimate = grouped_entropy(np.log(p[:k]))
    assert estimate == pytest.approx(scipy.stats.entropy([*p[:k], rest]), abs=3e-5)
    bias = exact - estimate
    assert -1e-6 <= bias <= rest * math.log(size - k) + 3e-5
    if rest > 1e-6:
        assert bias == pytest.approx(rest * scipy.stats.entropy(p[k:] / rest), abs=1e-5)


def test_a_certain_choice_has_none() -> None:
    assert grouped_entropy([0.0]) == 0.0
    assert grouped_entropy([1e-7, -50.0]) == pytest.approx(0.0, abs=1e-6)
    assert grouped_entropy([-math.inf, 0.0]) == 0.0
