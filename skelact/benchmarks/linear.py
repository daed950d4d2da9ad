"""How long linear probing takes on features of the size of NTU-60."""

from __future__ import annotations

import time


def measure(
    seed: int = 0,
    clips: int = 40_000,
    width: int = 2048,
    classes: int = 60,
    seeds: int = 5,
    epochs: int = 100,
    selection: bool = True,
) -> dict[str, float | str]:
    """Time the recipe `skelact_linear_v1` on made-up features, choice of the learning rate included.

    Args:
        seed: of the features.
        clips: training clips.
        width: feature width D.
        classes: number of classes.
        seeds: heads.
        epochs: passes.
        selection: choose the learning rate on a tenth of the clips first, as the protocol does.

    Returns:
        Seconds of each part and achieved GFLOP/s (2 x multiply-adds of the two products of a step).
    """
    import numpy as np
    import torch

    from skelact.protocols.features import FeatureTable
    from skelact.protocols.heads import fit, get_recipe
    from skelact.protocols.linear import choose_rate

    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (clips,), generator=generator)
    features = torch.randn(classes, width, generator=generator)[labels]
    features += 3 * torch.randn(clips, width, generator=generator)
    recipe = get_recipe("skelact_linear_v1", epochs=epochs)
    rate, chosen = 0.01, 0.0
    if selection:
        table = FeatureTable(features, labels, [str(i) for i in range(clips)], np.arange(clips))
        rows = np.arange(clips)
        start = time.perf_counter()
        rate = choose_rate(
            table.select(rows[: clips * 9 // 10]), table.select(rows[clips * 9 // 10 :]), classes, recipe, 0
        )
        chosen = time.perf_counter() - start
    start, cpu = time.perf_counter(), time.process_time()
    heads = fit(features, labels, classes, recipe, range(seeds), [rate])
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    products = 4.0 * clips * width * classes * seeds * epochs
    accuracy = (heads.logits(features[:4096]).argmax(2) == labels[:4096]).double().mean()
    return {
        "features": f"{clips:,} x {width:,}, {classes} classes",
        "heads, epochs": f"{seeds}, {epochs}",
        "threads": float(torch.get_num_threads()),
        "choosing the learning rate [s]": chosen,
        "training [s]": wall,
        "total [s]": chosen + wall,
        "CPU time of training [s]": cpu,
        "GFLOP/s": products / wall / 1e9,
        "training accuracy [%]": 100.0 * float(accuracy),
    }
