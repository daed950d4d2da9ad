"""Partitioned adjacency, equal to the released codes' and to the definition."""

from pathlib import Path

import numpy as np
import pytest

from skelact.skeleton.graph import adjacency, hop_distances, partition
from skelact.skeleton.layouts import LayoutError, get_layout, list_layouts

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "aimclr" / "graph.npz")
CASES = [key for key in GOLDEN.files if key.endswith("/A") and "/hop" in key]


@pytest.mark.parametrize("key", CASES)
def test_equals_the_released_graphs(key):
    layout, strategy, hop, _ = key.split("/")
    edges = [tuple(edge) for edge in GOLDEN[f"{layout}/edge"]]
    joints, center, hops = int(GOLDEN[f"{layout}/num_node"]), int(GOLDEN[f"{layout}/center"]), int(hop[3:])
    found = partition(joints, edges, center, strategy, hops)
    np.testing.assert_allclose(found, GOLDEN[key], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(hop_distances(joints, edges, hops), GOLDEN[f"{layout}/{hop}/hop_dis"])


def test_a_layout_gives_the_released_graph():
    np.testing.assert_allclose(adjacency(get_layout("ntu25")), GOLDEN["ntu-rgb+d/spatial/hop1/A"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", list_layouts())
@pytest.mark.parametrize("true_distances", [False, True])
def test_columns_add_up_to_one(name, true_distances):
    for strategy, hops in [("uniform", 1), ("distance", 2), ("spatial", 1), ("spatial", 3)]:
        parts = adjacency(get_layout(name), strategy, hops, true_distances)
        assert len(parts) == {"uniform": 1, "distance": hops + 1, "spatial": 2 * hops + 1}[strategy]
        np.testing.assert_allclose(parts.sum((0, 1)), 1, atol=1e-12)


def test_true_distances_split_every_bone_by_its_direction():
    edges, chain = [(0, 1), (1, 2), (2, 3)], 4
    outward = partition(chain, edges, 0, true_distances=True)[2] > 0
    assert set(zip(*np.nonzero(outward), strict=True)) == {(0, 1), (1, 2), (2, 3)}
    released = partition(chain, edges, 0)[2] > 0  # farther than one hop from the centre all joints count as equal
    assert set(zip(*np.nonzero(released), strict=True)) == {(0, 1), (1, 2)}


def test_disconnected_joints_are_infinitely_far():
    assert np.isinf(hop_distances(3, [(0, 1)])[0, 2])


def test_unknown_strategy_and_centre_are_named():
    with pytest.raises(LayoutError, match="radial"):
        partition(3, [(0, 1)], 0, "radial")
    with pytest.raises(LayoutError, match="7"):
        partition(3, [(0, 1)], 7)
