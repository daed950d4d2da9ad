"""Losses against the reference code, on one process and on two."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skelact.objectives import gather, global_mean, umurl_loss, vc_regularisation

GOLDEN = Path(__file__).parent / "golden" / "umurl"
NAMES = ("j", "b", "m", "uj", "ub", "um")


def golden(name):
    return {k: torch.from_numpy(v) for k, v in np.load(GOLDEN / f"{name}.npz", allow_pickle=False).items()}


@pytest.mark.parametrize(("prefix", "rtol", "atol"), [("f32_", 1e-5, 1e-5), ("f64_", 1e-12, 1e-12)])
def test_terms_and_gradients_equal_reference(prefix, rtol, atol):
    data = golden("d_losses")
    z = [data[f"{prefix}z_{name}"].clone().requires_grad_() for name in NAMES]
    terms = umurl_loss(z[:3], z[3:])
    terms.total.backward()
    assert terms.total.dtype == data[f"{prefix}total"].dtype
    for name, ours in {
        "intra": terms.intra,
        "inter": terms.inter,
        "std": terms.variance,
        "cov": terms.covariance,
        "vc": 5 * terms.variance + terms.covariance,
        "total": terms.total,
    }.items():
        torch.testing.assert_close(ours.detach(), data[prefix + name], rtol=rtol, atol=0, msg=name)
    for name, x in zip(NAMES, z, strict=True):
        torch.testing.assert_close(x.grad, data[f"{prefix}grad_z_{name}"], rtol=0, atol=atol)


def test_collapsed_embeddings_pay_the_hinge():
    data = golden("d_losses")
    values = data["collapsed_value"]
    z = [torch.full((6, 10), float(value), dtype=torch.float64) for value in values]
    terms = umurl_loss(z[:3], z[3:])
    torch.testing.assert_close(terms.variance, torch.full((6,), 0.99, dtype=torch.float64))
    torch.testing.assert_close(
        5 * terms.variance + terms.covariance, torch.full((6,), 4.95, dtype=torch.float64), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(terms.total, data["collapsed_total"], rtol=1e-12, atol=0)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 12), st.integers(1, 20), st.integers(0, 1000))
def test_gram_and_covariance_forms_agree(batch, width, seed):
    z = torch.randn(3, batch, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ours, direct = vc_regularisation(z), vc_regularisation(z, direct=True)
    assert torch.allclose(ours[0], direct[0], rtol=1e-12)
    assert torch.allclose(ours[1], direct[1], rtol=1e-9, atol=1e-12)
    cov = torch.cov(z[0].T).reshape(width, width)
    expected = (cov.square().sum() - cov.diagonal().square().sum()) / width
    assert torch.allclose(ours[1][0], expected, rtol=1e-9, atol=1e-12)


def test_loss_stays_float32_under_autocast_unless_asked():
    z = torch.randn(2, 3, 64, 32).to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        kept = umurl_loss(z[0], z[1])
        lowered = umurl_loss(z[0], z[1], in_autocast=True)
    expected = umurl_loss(z[0].float(), z[1].float())
    assert kept.total.dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(kept, expected, strict=True))
    assert not torch.equal(lowered.covariance.float(), expected.covariance)
    assert torch.allclose(lowered.total.float(), expected.total, rtol=0.1)


def test_float16_covariance_overflows_only_in_autocast():
    z = (torch.randn(2, 2, 64, 8, generator=torch.Generator().manual_seed(0)) * 60).half()
    assert torch.isfinite(umurl_loss(z[0], z[1]).total)
    with torch.autocast("cpu", dtype=torch.float16):
        assert torch.isfinite(umurl_loss(z[0], z[1]).total)
        assert not torch.isfinite(umurl_loss(z[0], z[1], in_autocast=True).total)


def test_gather_is_identity_without_a_group():
    x = torch.randn(3, 2)
    assert gather(x) is x


def _two_ranks(rank, folder):
    torch.set_num_threads(1)  # a forked process must not use the thread pool of its parent
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    data = golden("d_losses_dist2")
    weight = data["W"].clone().requires_grad_()
    z = [(data[f"x_z_{name}"][4 * rank : 4 * rank + 4] @ weight) for name in NAMES]
    for x in z:
        x.retain_grad()
    stacked = gather(torch.stack(z), dim=1)
    assert stacked.shape[:2] == (6, 8)
    loss = umurl_loss(stacked[:3], stacked[3:]).total
    loss.backward()
    mean = weight.grad.clone()
    torch.distributed.all_reduce(mean)
    torch.save(
        {"loss": loss.detach(), "local": weight.grad, "ddp": mean / 2, "z": [x.grad for x in z]}, f"{folder}/{rank}.pt"
    )
    torch.distributed.destroy_process_group()


@pytest.mark.ddp
def test_two_gloo_processes_equal_reference_and_one_process(tmp_path):
    torch.multiprocessing.start_processes(_two_ranks, (str(tmp_path),), nprocs=2, start_method="fork")
    data = golden("d_losses_dist2")
    for rank in range(2):
        ours = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        close = {"rtol": 0, "atol": 1e-10}
        torch.testing.assert_close(ours["loss"], data["full_loss"], **close)
        torch.testing.assert_close(ours["loss"], data[f"rank{rank}_loss"], **close)
        torch.testing.assert_close(ours["local"], data[f"rank{rank}_grad_W_local"], **close)
        torch.testing.assert_close(ours["ddp"], data[f"rank{rank}_grad_W_ddp"], **close)
        torch.testing.assert_close(ours["ddp"], data["full_grad_W"], **close)
        for name, grad in zip(NAMES, ours["z"], strict=True):
            torch.testing.assert_close(grad, data[f"rank{rank}_grad_z_{name}"], **close)


def _rows(count):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    return x, torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)


def _uneven(rank, counts):
    x, weight = _rows(sum(counts))
    mine = x.split(counts)[rank]
    loss = global_mean((mine @ weight).square().sum(1))
    loss.backward()
    grad = weight.grad / len(counts)
    torch.distributed.all_reduce(grad)
    return {"loss": loss.detach(), "grad": grad, "half": global_mean(mine.T.half())}


@pytest.mark.ddp
@pytest.mark.parametrize("counts", [(5, 3), (4, 0, 2)])
def test_uneven_ranks_share_one_mean(counts, on_ranks):
    x, weight = _rows(sum(counts))
    loss = global_mean((x @ weight).square().sum(1))
    loss.backward()
    for ours in on_ranks(_uneven, counts):
        torch.testing.assert_close(ours["loss"], loss.detach(), rtol=1e-12, atol=0)
        torch.testing.assert_close(ours["grad"], weight.grad, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(ours["half"], x.half().float().mean(0))


def test_one_process_needs_no_group():
    x = torch.randn(3, 2, requires_grad=True)
    assert torch.equal(global_mean(x), x.mean(1))
