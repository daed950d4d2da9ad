from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from skelact.data.colour import colour_depth, jet_index, jet_table

GOLDEN = Path(__file__).parents[1] / "golden" / "actionmae" / "jet.npz"


def published(depth):
    """The recipe as it stands in words: own range, matplotlib's jet, times 255, truncated."""
    scaled = (depth - depth.min()) / (depth.max() - depth.min())
    return (matplotlib.colormaps["jet"](scaled)[..., :3] * 255).astype(np.uint8)


def test_the_table_is_matplotlibs():
    table = (matplotlib.colormaps["jet"](np.arange(256))[:, :3] * 255).astype(np.uint8)
    np.testing.assert_array_equal(jet_table(), table)
    with pytest.raises(ValueError):
        jet_table()[0] = 1


def test_golden_frame():
    with np.load(GOLDEN) as golden:
        np.testing.assert_array_equal(jet_table(), golden["jet/lut_uint8"])
        index = jet_index(golden["nw_ucla/src/depth/0"])
        np.testing.assert_array_equal(colour_depth(index), golden["jet/depth0_colour"])


@given(
    hnp.arrays(np.uint16, (5, 7), elements=st.integers(0, 65535))
    | hnp.arrays(np.uint16, (5, 7), elements=st.integers(2000, 2400))
    | hnp.arrays(np.uint8, (4, 3))
)
def test_equal_to_the_recipe_for_any_frame(depth):
    if depth.min() < depth.max():
        np.testing.assert_array_equal(colour_depth(jet_index(depth)), published(depth.astype(np.float64)))
    else:
        assert not jet_index(depth).any()  # the recipe divides by zero here


def test_every_quotient_of_a_range_is_truncated_as_floats_are():
    for high in (1, 2, 3, 255, 256, 257, 1000, 4095, 65535):
        depth = np.arange(high + 1, dtype=np.uint16)[None]
        np.testing.assert_array_equal(colour_depth(jet_index(depth)), published(depth.astype(np.float64)))


def test_one_scale_for_all_frames():
    near, far = np.array([[0, 1000, 3000]], np.uint16), np.array([[2000, 3000, 9000]], np.uint16)
    assert jet_index(near, (1000, 3000)).tolist() == [[0, 0, 255]]
    assert jet_index(far, (1000, 3000)).tolist() == [[128, 255, 255]]
