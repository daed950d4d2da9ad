"""Adjacency of joint graphs, partitioned for graph convolutions as in ST-GCN (Yan et al., AAAI 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from skelact.skeleton.layouts import Layout, LayoutError

STRATEGIES = ("uniform", "distance", "spatial")


def hop_distances(num_joints: int, edges: Sequence[tuple[int, int]], max_hop: int | None = None) -> np.ndarray:
    """Bones on the shortest path between any two joints.

    Args:
        num_joints: V.
        edges: pairs of neighbours, either direction; self loops do not matter.
        max_hop: distances beyond this count as infinite; None: all are known.

    Returns:
        `(V, V)` float64, infinite where there is no path (or a longer one than `max_hop`).
    """
    near = np.eye(num_joints, dtype=bool)
    for a, b in edges:
        near[a, b] = near[b, a] = True
    distance = np.full((num_joints, num_joints), np.inf)
    reached = np.eye(num_joints, dtype=bool)
    distance[reached] = 0
    for hop in range(1, num_joints if max_hop is None else max_hop + 1):
        further = reached @ near
        distance[further & ~reached] = hop
        if (further == reached).all():
            break
        reached = further
    return distance


def partition(
    num_joints: int,
    edges: Sequence[tuple[int, int]],
    center: int,
    strategy: str = "spatial",
    max_hop: int = 1,
    true_distances: bool = False,
) -> np.ndarray:
    """Column-normalised adjacency, split into subsets that get weights of their own.

    * ``uniform``: one subset.
    * ``distance``: one subset for each number of hops, 0 to `max_hop`.
    * ``spatial``: the joint itself; then for each number of hops the neighbours that are as far from the centre as the
      joint or farther, and those that are nearer.

    Args:
        num_joints: V.
        edges: bones (self loops are added).
        center: joint from which ``spatial`` measures distance.
        strategy: one of :data:`STRATEGIES`.
        max_hop: neighbours up to so many bones away take part.
        true_distances: measure distances to the centre through the whole graph. The released code of ST-GCN and its
            followers knows them only up to `max_hop`: beyond, all joints count as equally far, so with one hop all
            edges but those at the centre fall into the second subset. False reproduces that.

    Returns:
        `(K, V, V)` float64; element `(k, v, w)` is the share of joint v in what subset k brings to joint w. Summed
        over k, columns add up to 1.

    Raises:
        LayoutError: unknown strategy or centre.
    """
    if strategy not in STRATEGIES:
        raise LayoutError(f"unknown graph partition {strategy!r}; there are {', '.join(STRATEGIES)}")
    if not 0 <= center < num_joints:
        raise LayoutError(f"centre joint {center} is not one of {num_joints}")
    distance = hop_distances(num_joints, edges, max_hop)
    adjacency = np.isfinite(distance).astype(np.float64)
    adjacency /= adjacency.sum(0, keepdims=True)
    if strategy == "uniform":
        return adjacency[None]
    rings = [np.where(distance == hop, adjacency, 0) for hop in range(max_hop + 1)]
    if strategy == "distance":
        return np.stack(rings)
    known = hop_distances(num_joints, edges) if true_distances else distance
    source, target = known[:, center][:, None], known[:, center][None, :]
    subsets = [rings[0]]
    for ring in rings[1:]:
        subsets += [np.where(source >= target, ring, 0), np.where(source < target, ring, 0)]
    return np.stack(subsets)


def adjacency(layout: Layout, strategy: str = "spatial", max_hop: int = 1, true_distances: bool = False) -> np.ndarray:
    """:func:`partition` of a layout's bones around its root, `(K, V, V)` float64."""
    return partition(layout.num_joints, layout.bones, layout.root, strategy, max_hop, true_distances)
