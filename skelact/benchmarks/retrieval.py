"""How long exact retrieval takes, beside scikit-learn's brute-force neighbours on the same machine."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def measure(
    seed: int = 0,
    queries: int = 16_000,
    gallery: int = 40_000,
    widths: tuple[int, ...] = (256, 2048),
    decays: tuple[float, ...] = (0.0, 1.5),
    k: int = 20,
    reference_queries: int = 2_000,
) -> dict[str, float | str]:
    """Time the search and scikit-learn's, and compare the answers.

    Two kinds of made-up features: `flat` (independent normal numbers, the worst case) and `decaying` (class centres
    and a power-law spectrum, variance of direction i falling as i^-1.5, as trained encoders have it).

    Args:
        seed: of the features.
        queries: number of queries.
        gallery: number of gallery rows.
        widths: feature widths D.
        decays: exponents of the spectra; 0 is flat.
        k: neighbours.
        reference_queries: scikit-learn is timed on so many and scaled up; its cost is linear in the queries.

    Returns:
        Seconds, speed-up and share of equal neighbour sets, per kind of feature.
    """
    import torch
    from sklearn.neighbors import NearestNeighbors

    from skelact.protocols.neighbours import search

    out: dict[str, float | str] = {
        "queries, gallery, k": f"{queries:,}, {gallery:,}, {k}",
        "threads": float(torch.get_num_threads()),
    }
    for width in widths:
        for decay in decays:
            q, g = (_features(n, width, decay, seed + i) for i, n in enumerate((queries, gallery)))
            start = time.perf_counter()
            found = search(q, g, k)
            ours = time.perf_counter() - start
            some = min(reference_queries, queries)
            model = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(g.numpy())
            start = time.perf_counter()
            expected = torch.from_numpy(model.kneighbors(q[:some].numpy(), return_distance=False))
            theirs = (time.perf_counter() - start) * queries / some
            same = (found.index[:some].sort(1).values == expected.sort(1).values).all(1).double().mean()
            name = f"D={width} {'flat' if decay == 0 else 'decaying'}"
            out[f"{name}: skelact [s]"] = ours
            out[f"{name}: scikit-learn [s]"] = theirs
            out[f"{name}: times faster"] = theirs / ours
            out[f"{name}: same neighbours [%]"] = 100.0 * float(same)
    return out


def _features(count: int, width: int, decay: float, seed: int) -> Tensor:
    import torch

    centres = torch.randn(60, width, generator=torch.Generator().manual_seed(12345))
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, width, generator=generator)
    if decay == 0:
        return noise
    scale = torch.arange(1, width + 1).float() ** (-decay / 2)
    return (0.7 * centres[torch.randint(60, (count,), generator=generator)] + noise) * scale
