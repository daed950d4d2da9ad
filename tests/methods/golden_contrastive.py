"""Helpers of the parity tests of the contrastive family."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from skelact.interop import load_official

GOLDEN = Path(__file__).parents[1] / "golden" / "aimclr"


@lru_cache(maxsize=1)
def golden(name):
    return {k: torch.from_numpy(v) for k, v in np.load(GOLDEN / f"{name}.npz").items() if v.dtype.kind != "U"}


@lru_cache(maxsize=4)
def names(name, key):
    return np.load(GOLDEN / f"{name}.npz")[key].tolist()


def state(data):
    """The released state before the first step.

    Its counters were stored as they stood after some steps (integers were not copied): they began at zero, and the
    queues' pointer at 12, where the next batch of four wraps around.
    """
    found = {k.removeprefix("state/"): v for k, v in data.items() if k.startswith("state/")}
    counters = {k: torch.zeros_like(v) for k, v in found.items() if k.endswith("num_batches_tracked")}
    return found | counters | {k: torch.full_like(v, 12) for k, v in found.items() if k.startswith("queue_ptr")}


def load(system, data, dtype=torch.float64, **hparams):
    """The method in training mode, without dropout, and with the reference's own optimiser."""
    method = load_official(system, state(data), dropout=0.0, frames=16, **hparams)
    method.to(dtype).train()
    sgd = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.1, 0.9, weight_decay=1e-4)
    return method, sgd


def dense(x, dtype=torch.float64):
    """The reference's (N, C, T, V, M) as our (N, M, T, V, C)."""
    return x.to(dtype).permute(0, 4, 2, 3, 1)


def close(ours, theirs, dtype=torch.float64):
    tolerance = 1e-8 if dtype == torch.float64 else 2e-4
    torch.testing.assert_close(
        ours.detach().double().reshape(theirs.shape), theirs.double(), rtol=tolerance, atol=tolerance
    )


def at_epoch(method, monkeypatch, epoch):
    monkeypatch.setattr(type(method), "current_epoch", epoch)


def check_weights(method, data, prefix, rows, rtol=1e-7, atol=1e-9):
    """Every released tensor after the optimiser steps, by sum and length; selected ones entry by entry."""
    own = method.state_dict()
    found = {name: own[ours] if row is None else own[ours][row] for name, ours, row in rows}
    for name, value in data.items():
        if name.startswith(f"{prefix}/") and not name.endswith(".A"):
            ours = found[name.removeprefix(f"{prefix}/")]
            torch.testing.assert_close(
                ours.double().reshape(value.shape), value.double(), rtol=rtol, atol=atol, msg=name
            )
    return found


def check_stats(found, name, data, prefix, rtol=1e-6, atol=1e-7):
    for i, tensor in enumerate(names(name, f"{prefix}_stats__names")):
        if tensor.endswith(".A"):
            continue
        ours = found[tensor].double()
        expected = data[f"{prefix}_stats__sum"][i], data[f"{prefix}_stats__l2"][i]
        for got, want in zip((ours.sum(), ours.norm()), expected, strict=True):
            torch.testing.assert_close(got, want.double(), rtol=rtol, atol=atol, msg=lambda m, t=tensor: f"{t}: {m}")
