"""Losses of MaskCLR: equal to the released code's, gradients included, and what they promise."""

from pathlib import Path

import numpy as np
import pytest
import torch

from skelact.objectives.maskclr import class_mean_loss, log_confidence, nt_xent, targeted_class_loss

STORED = np.load(Path(__file__).parents[1] / "golden" / "maskclr" / "losses.npz")
GOLDEN = {key: torch.from_numpy(STORED[key]) for key in STORED}


def check(name, loss, first, second, atol=2e-5):
    torch.testing.assert_close(loss, GOLDEN[name], rtol=2e-5, atol=2e-5)
    for number, gradient in enumerate(torch.autograd.grad(loss, [first, second])):
        torch.testing.assert_close(gradient, GOLDEN[f"{name}.grad{number}"], rtol=2e-5, atol=atol)


@pytest.mark.parametrize(
    ("name", "options", "scale"),
    [
        ("sc_T0.5", {"temperature": 0.5}, 1.0),
        ("sc_T0.1", {"temperature": 0.1}, 1.0),
        ("sc_unnorm_0.1x", {"temperature": 0.5, "normalise": False}, 0.1),
    ],
)
def test_sample_loss_equals_the_released_one(name, options, scale):
    first, second = ((scale * GOLDEN[key]).requires_grad_() for key in ("zs", "zm"))
    check(name, nt_xent(first, second, **options), first, second)


def test_targeted_sample_loss_equals_the_released_one():
    first, second = (GOLDEN[key].clone().requires_grad_() for key in ("zs", "zm"))
    weight = log_confidence(first, GOLDEN["labels"], "batch")
    torch.testing.assert_close(weight.exp(), GOLDEN["p_batchsoftmax"], rtol=2e-5, atol=2e-5)
    check("asc_T0.5", nt_xent(first, second, log_weight=weight), first, second)
    by_class = log_confidence(first, GOLDEN["labels"], "class")
    expected = torch.nn.functional.cross_entropy(first, GOLDEN["labels"], reduction="none")
    torch.testing.assert_close(-by_class, expected)
    assert log_confidence(first, torch.full((6,), -1), "class").tolist() == [0.0] * 6


def test_targeted_class_loss_equals_the_released_one_over_batches():
    memory = torch.zeros(6, 6)
    for batch in range(4):
        logits = GOLDEN[f"tcl{batch}.logits"].clone().requires_grad_()
        loss, memory = targeted_class_loss(logits, GOLDEN[f"tcl{batch}.labels"], memory)
        torch.testing.assert_close(loss, GOLDEN[f"tcl{batch}.loss"], rtol=2e-5, atol=2e-5)
        torch.testing.assert_close(memory, GOLDEN[f"tcl{batch}.tp_out"], rtol=2e-5, atol=2e-5)
        assert not loss.requires_grad


def test_pairs_that_are_away_neither_count_nor_get_a_gradient():
    first, second = (GOLDEN[key].clone().requires_grad_() for key in ("zs", "zm"))
    present = torch.tensor([True, False, True, True, False, True])
    loss = nt_xent(first, second, present=present)
    torch.testing.assert_close(loss, nt_xent(first[present], second[present]))
    for gradient in torch.autograd.grad(loss, [first, second]):
        assert gradient.isfinite().all() and (gradient[~present] == 0).all() and (gradient[present] != 0).all()
    nobody = nt_xent(first, second, present=torch.zeros(6, dtype=torch.bool))
    assert nobody == 0 and all((g == 0).all() for g in torch.autograd.grad(nobody, [first, second]))


def test_class_means_are_contrasted():
    first, second = (GOLDEN[key].clone().requires_grad_() for key in ("zs", "zm"))
    labels = torch.tensor([0, 2, 0, 2, 4, -1])
    units = [torch.nn.functional.normalize(x, dim=-1) for x in (first, second)]
    means = [torch.stack([x[labels == k].mean(0) for k in (0, 2, 4)]) for x in units]
    loss, none = class_mean_loss(first, second, labels, 7)
    torch.testing.assert_close(loss, nt_xent(*means))
    gradients = torch.autograd.grad(loss, [first, second])
    assert none is None and all(g.isfinite().all() and (g[5] == 0).all() and (g[:5] != 0).all() for g in gradients)


def test_a_memory_of_class_means_adds_negatives():
    first, second = (GOLDEN[key].clone().requires_grad_() for key in ("zs", "zm"))
    empty = torch.zeros(2, 7, 10)
    early, memory = class_mean_loss(first, second, torch.tensor([0, 2, 0, 2, 4, -1]), 7, memory=empty)
    without, _ = class_mean_loss(first, second, torch.tensor([0, 2, 0, 2, 4, -1]), 7)
    torch.testing.assert_close(early, without)
    assert (memory != 0).any(-1).tolist() == [[True, False, True, False, True, False, False]] * 2
    labels = torch.tensor([2, 2, 5, 5, 5, 5])
    loss, after = class_mean_loss(first, second, labels, 7, memory=memory)
    assert loss > class_mean_loss(first, second, labels, 7)[0]  # of two classes, where there are four now
    assert torch.equal(after[:, [0, 4]], memory[:, [0, 4]]) and not torch.equal(after[:, 2], memory[:, 2])
    unit = torch.nn.functional.normalize(first, dim=-1)
    torch.testing.assert_close(after[0, 2], 0.9 * memory[0, 2] + 0.1 * unit[:2].mean(0))
    assert all(g.isfinite().all() and (g != 0).any() for g in torch.autograd.grad(loss, [first, second]))
