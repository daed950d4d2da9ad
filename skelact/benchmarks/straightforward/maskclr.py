"""MaskCLR's training step as one would write it down from the paper, to measure the library's own step against."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skelact.benchmarks.straightforward.base import StraightforwardViews, Views
from skelact.benchmarks.straightforward.classifier import head_form
from skelact.benchmarks.straightforward.supcon import supervised_contrast
from skelact.benchmarks.straightforward.tokens import token_form
from skelact.methods.maskclr import PRESETS, MaskCLR
from skelact.transforms.draws import Draws


class StraightforwardMaskCLR(StraightforwardViews):
    """The same network and loss as a :class:`MaskCLR` of the corrected preset, with a copy of its weights.

    Args:
        method: whose sizes, weights and temperatures are taken. In the epochs before its second pathway the loss is
            the cross-entropy alone.
    """

    def __init__(self, method: MaskCLR) -> None:
        super().__init__(method)
        if method.switches != PRESETS["corrected"] or not method.bn_update_on_masked:
            raise TypeError("the straightforward form is of MaskCLR's corrected preset")
        self.seed, self.epoch, self.contrasting = method.seed, method.current_epoch, method.contrasting
        self.smoothing = method.label_smoothing
        self.ratio, self.mask_temperature = method.ratio, method.mask_temperature
        self.temperatures = method.sample_temperature, method.class_temperature
        self.backbone = token_form(method.backbone)
        self.dropout = nn.Dropout(method.dropout.p)
        *hidden, self.classifier = head_form(method.head).children()
        self.hidden = nn.Sequential(*hidden)

    def loss(self, batch: Any, views: Views) -> Tensor:
        """Cross-entropy of both pathways, NT-Xent of a clip's two features, supervised contrast of all."""
        ((view, mask),) = views
        (x,) = self.derive(view, mask).values()
        present = self.backbone.present(x, mask)
        tokens, importance = self.backbone.represent(x)
        first = self.hidden(self.dropout(self.backbone.pool(tokens, present)))
        if not self.contrasting:
            return self.cross_entropy(first, batch.label)
        uniform = Draws(self.seed, self.epoch, batch.index).uniform("agpm", *importance.shape[1:])
        tokens, _ = self.backbone.represent(x, self.mask(importance, uniform))
        second = self.hidden(self.dropout(self.backbone.pool(tokens, present)))
        ce = (self.cross_entropy(first, batch.label) + self.cross_entropy(second, batch.label)) / 2
        of_samples, of_classes = self.temperatures
        sample = self.ntxent(first, second, of_samples)
        return ce + 0.5 * sample + 0.5 * supervised_contrast([first, second], batch.label, of_classes)

    def cross_entropy(self, hidden: Tensor, label: Tensor) -> Tensor:
        """Of one pathway's hidden features."""
        return F.cross_entropy(self.classifier(hidden), label, ignore_index=-1, label_smoothing=self.smoothing)

    def mask(self, importance: Tensor, uniform: Tensor) -> Tensor:
        """Joints of each person's clip drawn by their importance (Gumbel top-k), `(N, M, T, V)` bool."""
        a = importance.flatten(2)
        p = (a / (self.mask_temperature * a.amax(-1, keepdim=True) + 1e-10)).softmax(-1)
        score = p.log() - torch.log(-torch.log(uniform.flatten(2) + 1e-10) + 1e-10)
        kept = score.argsort(-1)[..., : int(score.shape[-1] * (1 - self.ratio))]
        return torch.ones_like(a, dtype=torch.bool).scatter(-1, kept, False).view_as(importance)

    @staticmethod
    def ntxent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
        """NT-Xent: each feature's partner against all others (Chen et al., ICML 2020)."""
        z = F.normalize(torch.cat([first, second]), dim=1)
        logits = z @ z.T / temperature
        logits = logits.masked_fill(torch.eye(len(z), dtype=torch.bool, device=z.device), -torch.inf)
        partner = torch.arange(len(z), device=z.device).roll(len(first))
        return F.cross_entropy(logits, partner)
