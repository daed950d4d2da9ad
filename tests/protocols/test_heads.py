"""Closed-form training of linear heads against plain autograd, and the reference probe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from skelact.errors import SkelactError
from skelact.protocols.heads import (
    RECIPES,
    Recipe,
    batch_order,
    epoch_order,
    fit,
    fit_lists,
    get_recipe,
    initial,
    stable_rate,
    standardise,
)
from skelact.protocols.linear import accuracies

GOLDEN = Path(__file__).parents[1] / "golden" / "umurl" / "g_linear_probe.npz"


def problem(n: int = 90, width: int = 12, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % classes
    centre = torch.randn(classes, width, generator=generator)
    return centre[labels] + 2 * torch.randn(n, width, generator=generator) + 3, labels


def plain(
    features: torch.Tensor, labels: torch.Tensor, classes: int, recipe: Recipe, seed: int, lr: float
) -> nn.Linear:
    """The same training with nn.Linear, BatchNorm statistics, autograd and torch.optim."""
    if recipe.normalize:
        norm = nn.BatchNorm1d(features.shape[1], affine=False, momentum=None)
        norm(features)  # one pass: the running statistics are those of the set
        mean, var = features.mean(0), features.var(0, correction=0)
        features = (features - mean) / (var + norm.eps).sqrt()
    layer = nn.Linear(features.shape[1], classes)
    layer.weight.data, layer.bias.data = initial(recipe, classes, features.shape[1], seed)
    optimizer = torch.optim.SGD(layer.parameters(), lr, recipe.momentum, weight_decay=recipe.weight_decay)
    epochs, batches = recipe.steps(len(features))
    if recipe.schedule == "cosine":
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    else:
        milestones = [m * batches for m in recipe.milestones]
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, 0.1)
    for epoch in range(epochs):
        rows = epoch_order(len(features), epoch).split(recipe.batch_size)
        for batch in batch_order(batches, epoch, seed):
            optimizer.zero_grad()
            nn.functional.cross_entropy(layer(features[rows[batch]]), labels[rows[batch]]).backward()
            optimizer.step()
            schedule.step()
    return layer


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(0.1, 32, 6, normalize=True),
        Recipe(0.1, 32, 6, "step", (3, 5), init=0.01, weight_decay=1e-2),
    ],
)
def test_fit_equals_a_plain_loop(recipe: Recipe) -> None:
    features, labels = problem()
    rates = (0.03, 0.2)
    heads = fit(features, labels, 4, recipe, seeds=[0, 3], rates=rates)
    assert heads.steps == 18
    for i, seed in enumerate([0, 3]):
        for j, lr in enumerate(rates):
            layer = plain(features, labels, 4, recipe, seed, lr)
            assert torch.allclose(heads.weight[2 * i + j], layer.weight, atol=2e-5)
            assert torch.allclose(heads.bias[2 * i + j], layer.bias, atol=2e-5)


def test_golden_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps of the published probe on the reference features: weights, biases, logits and accuracies."""
    with np.load(GOLDEN) as golden:
        data = {k: torch.from_numpy(np.array(golden[k])) for k in golden.files}
    monkeypatch.setattr(
        "skelact.protocols.heads.initial", lambda *_: (data["fc_weight0"].clone(), data["fc_bias0"].clone())
    )
    before = torch.addmm(data["fc_bias0"], data["features"], data["fc_weight0"].T)
    for steps in (1, 2, 3):
        loss = torch.nn.functional.cross_entropy(before, data["labels"]).double()
        assert torch.allclose(loss, data["loss"][steps - 1], rtol=0, atol=1e-6)
        recipe = get_recipe("umurl", epochs=steps)
        heads = fit(data["features"], data["labels"], 10, recipe, [0], recipe.rates)
        assert torch.allclose(heads.weight[0], data[f"fc_weight{steps}"], atol=1e-6)
        assert torch.allclose(heads.bias[0], data[f"fc_bias{steps}"], atol=1e-6)
        before = heads.logits(data["features"])[0]
    start = torch.addmm(data["fc_bias0"], data["features"], data["fc_weight0"].T)
    assert torch.allclose(start, data["logits0"], atol=1e-6)
    scores = accuracies(data["logits0"], data["labels"])
    assert scores["top1"] == float(data["acc1"]) and scores["top5"] == float(data["acc5"])


def test_logits_standardise_as_in_training() -> None:
    features, labels = problem()
    heads = fit(features, labels, 4, Recipe(0.1, 32, 2, normalize=True), [0], [0.1])
    mean, scale = standardise(features)
    expected = (features - mean) * scale @ heads.weight[0].T + heads.bias[0]
    assert torch.allclose(heads.logits(features, chunk=17)[0], expected, atol=1e-5)


def test_recipes_are_found_by_name_and_can_be_changed() -> None:
    assert get_recipe("umurl", epochs=3).epochs == 3
    assert RECIPES["umurl"].factor(119 * 4, 150, 4) == 1 and RECIPES["umurl"].factor(140 * 4, 150, 4) == pytest.approx(
        0.01
    )
    with pytest.raises(SkelactError, match="skelact_linear_v1"):
        get_recipe("nonsense")


def test_small_sets_get_enough_steps() -> None:
    assert RECIPES["skelact_linear_v1"].steps(11) == (500, 1)
    assert RECIPES["skelact_linear_v1"].steps(40_000) == (100, 157)


def test_stable_rate_is_the_inverse_curvature() -> None:
    features, _ = problem()
    statistics = standardise(features)
    x = torch.cat([(features - statistics[0]) * statistics[1], torch.ones(len(features), 1)], 1)
    top = torch.linalg.eigvalsh(x.T @ x / len(x))[-1]
    assert stable_rate(features, statistics) == pytest.approx(2 / float(top), rel=0.02)


def test_accuracies_by_hand() -> None:
    logits = torch.eye(6)[torch.tensor([0, 0, 0, 1, 5])]
    assert accuracies(logits, torch.tensor([0, 0, 0, 0, 5])) == pytest.approx(
        {"top1": 80.0, "top5": 100.0, "mean_class": 87.5}
    )


def test_training_in_the_span_of_few_clips_changes_nothing() -> None:
    features, labels = problem(n=20, width=64)
    recipe = Recipe(0.1, 8, 5, normalize=True)
    heads = fit(features, labels, 4, recipe, [2], [0.1])
    layer = plain(features, labels, 4, recipe, 2, 0.1)
    assert torch.allclose(heads.weight[0], layer.weight, atol=2e-5)


@pytest.mark.parametrize("width", [6, 64])
def test_lists_are_trained_as_if_alone(width: int) -> None:
    features, labels = problem(n=40, width=width)
    recipe = Recipe(0.05, 32, 40, normalize=True)
    statistics = standardise(features)
    lists = torch.stack([torch.arange(8), torch.arange(20, 28)])
    together = fit_lists(features, labels, lists, 4, recipe, [1, 2], 0.05, statistics)
    for i, seed in enumerate([1, 2]):
        rows = lists[i]
        alone = fit(features[rows], labels[rows], 4, recipe, [seed], [0.05], statistics)
        assert torch.allclose(together.weight[i], alone.weight[0], atol=2e-5)
        assert torch.allclose(together.bias[i], alone.bias[0], atol=2e-5)
    assert together.steps == alone.steps == 40


def test_seeds_side_by_side_equal_seeds_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(4200, 256, generator=generator), torch.arange(4200) % 4
    recipe = Recipe(0.05, 512, 3, normalize=True)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        together = fit(features, labels, 4, recipe, [0, 1, 2], [0.05])
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        alone = fit(features, labels, 4, recipe, [2], [0.05])
    finally:
        torch.set_num_threads(threads)
    assert torch.allclose(together.weight[2], alone.weight[0], atol=1e-6)
