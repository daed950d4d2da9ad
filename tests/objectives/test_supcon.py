"""Supervised contrastive loss: reference values and gradients, what its two forms are invariant to, and ranks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skelact.objectives import gather, supcon

GOLDEN = Path(__file__).parents[1] / "golden" / "maskclr" / "supcon.npz"
FORMS = {  # golden name -> labels, temperature, row_max, normalize
    "supcon_std_l2_T0.07": ("labels", 0.07, False, True),
    "supcon_std_l2_T0.1": ("labels", 0.1, False, True),
    "supcon_std_l2_T0.07_unique": ("labels_unique", 0.07, False, True),
    "supcon_maxnorm_T0.07": ("labels", 0.07, True, False),
    "supcon_maxnorm_T0.5": ("labels", 0.5, True, False),
    "supcon_maxnorm_l2_T0.07": ("labels", 0.07, True, True),
    "supcon_maxnorm_T0.07_unique": ("labels_unique", 0.07, True, False),
}


def golden():
    return {key: torch.from_numpy(value) for key, value in np.load(GOLDEN, allow_pickle=False).items()}


@pytest.mark.parametrize("name", FORMS)
def test_two_views_equal_the_reference_with_gradients(name):
    data = golden()
    labels, temperature, row_max, normalize = FORMS[name]
    views = [data[key].clone().requires_grad_() for key in ("zs", "zm")]
    loss = supcon(torch.stack(views, 1), data[labels], temperature, row_max=row_max, normalize=normalize)
    loss.backward()
    tolerance = {"rtol": 0, "atol": 2e-5}
    torch.testing.assert_close(loss.detach(), data[name], **tolerance)
    for number, view in enumerate(views):
        torch.testing.assert_close(view.grad, data[f"{name}.grad{number}"], **tolerance)


def test_one_view_equals_the_reference_with_gradients():
    data = golden()
    unit = data["oneview_e"].clone().requires_grad_()
    loss = supcon(unit[:, None], data["oneview_labels"], 0.1, normalize=False)
    loss.backward()
    torch.testing.assert_close(loss.detach(), data["supcon_oneview_T0.1"], rtol=0, atol=2e-5)
    torch.testing.assert_close(unit.grad, data["supcon_oneview_T0.1.grad0"], rtol=0, atol=2e-5)


def _clips(seed, clips=6, views=2):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(clips, views, 5, generator=generator, dtype=torch.float64)
    return features, torch.randint(0, 3, (clips,), generator=generator)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.floats(0.05, 2.0), st.booleans())
def test_the_temperature_cancels_in_the_row_maximum_form_alone(seed, temperature, normalize):
    features, labels = _clips(seed)
    assert supcon(features, labels, temperature, row_max=True, normalize=normalize) == supcon(
        features, labels, 0.07, row_max=True, normalize=normalize
    )
    one, other = (supcon(features, labels, x, base_temperature=x) for x in (temperature, temperature * 1.5))
    assert not torch.isclose(one, other, rtol=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.booleans(), st.integers(1, 3))
def test_order_of_clips_and_views_does_not_matter(seed, row_max, views):
    features, labels = _clips(seed, views=views)
    loss = supcon(features, labels, row_max=row_max)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    assert torch.isclose(supcon(features[order].flip(1), labels[order], row_max=row_max), loss, rtol=1e-12)
    if not row_max:  # normalised: neither does the length of an embedding
        assert torch.isclose(supcon(features * 7, labels), loss, rtol=1e-12)


def test_an_anchor_without_positive_is_a_negative_only():
    features, _ = _clips(0, clips=5, views=1)
    labels = torch.tensor([0, 0, 1, 1, 2])
    unit = torch.nn.functional.normalize(features[:, 0], dim=1)
    logits = (unit @ unit.T / 0.1).fill_diagonal_(-torch.inf)
    log = logits.log_softmax(1)
    expected = -(log[0, 1] + log[1, 0] + log[2, 3] + log[3, 2]) / 4 * 0.1 / 0.07
    assert torch.isclose(supcon(features, labels), expected, rtol=1e-12)


def test_a_clip_without_label_is_a_class_of_its_own():
    features, _ = _clips(4, clips=5)
    unlabelled = torch.tensor([0, -1, 0, -1, 1])
    assert supcon(features, unlabelled) == supcon(features, torch.tensor([0, 7, 0, 8, 1]))


def test_a_batch_without_any_pair_has_no_loss_and_no_gradient():
    features = torch.randn(4, 1, 3, requires_grad=True)
    loss = supcon(features, torch.arange(4))
    loss.backward()
    assert loss == 0
    assert torch.equal(features.grad, torch.zeros_like(features))


@pytest.mark.parametrize("row_max", [False, True])
def test_the_loss_is_single_precision_under_autocast(row_max):
    features = torch.randn(8, 1, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.arange(8) // 2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = supcon(features, labels, row_max=row_max)
    assert lowered.dtype == torch.float32
    assert torch.equal(lowered, supcon(features.float(), labels, row_max=row_max))


def _on_rank(rank, counts):
    features, labels = _clips(3, clips=sum(counts))
    weight = torch.eye(5, dtype=torch.float64, requires_grad=True)
    mine = features.split(counts)[rank] @ weight
    loss = supcon(gather(mine), gather(labels.split(counts)[rank]))
    loss.backward()
    grad = weight.grad / len(counts)  # DDP's average
    torch.distributed.all_reduce(grad)
    return {"loss": loss.detach(), "grad": grad}


@pytest.mark.ddp
def test_gathered_ranks_equal_one_process(on_ranks):
    features, labels = _clips(3, clips=6)
    weight = torch.eye(5, dtype=torch.float64, requires_grad=True)
    loss = supcon(features @ weight, labels)
    loss.backward()
    for ours in on_ranks(_on_rank, (3, 3)):
        torch.testing.assert_close(ours["loss"], loss.detach(), rtol=1e-12, atol=0)
        torch.testing.assert_close(ours["grad"], weight.grad, rtol=1e-10, atol=1e-13)
