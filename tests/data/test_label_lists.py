from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from skelact.data.label_lists import aimclr_label_subset
from skelact.errors import SkelactError

GOLDEN = Path(__file__).parents[1] / "golden" / "label_lists" / "aimclr.npz"


@pytest.mark.parametrize("fraction", [0.01, 0.1])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_lists_of_the_reference(fraction, seed):
    random.seed(5)
    state = random.getstate()
    with np.load(GOLDEN) as golden:
        labels = golden["labels"]
        rows = aimclr_label_subset(labels, fraction, seed)
        np.testing.assert_array_equal(rows, golden[f"pct{fraction}/s{seed}/index"])
        np.testing.assert_array_equal(labels[rows], golden[f"pct{fraction}/s{seed}/labels"])
    assert random.getstate() == state  # nobody else's draws move


def test_small_classes_may_get_none_and_the_fraction_is_checked():
    assert (
        aimclr_label_subset([0] * 5 + [1] * 15, 0.1).tolist()[:1] != [] and len(aimclr_label_subset([2] * 5, 0.1)) == 0
    )
    for fraction in (0, 1.5):
        with pytest.raises(SkelactError, match="label fraction"):
            aimclr_label_subset([0, 1], fraction)
