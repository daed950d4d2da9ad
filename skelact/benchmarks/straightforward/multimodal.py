"""Training steps of several modalities written down plainly: fusion baselines and ActionMAE (Woo et al., AAAI 2023).

Frames of all clips through timm's network as it comes (NCHW), one modality after the other; blocks whose attention
matrices exist; losses over what was dropped by masks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skelact.backbones.attention import PreNormBlock, PreNormTransformer, drop_path
from skelact.backbones.base import Encoder
from skelact.backbones.fusion import ConcatFusion, Fusion, LateFusion, SumFusion, TransformerFusion
from skelact.backbones.modality import JointConvEncoder, ModalityEncoder, SkeletonEncoder
from skelact.backbones.signal import SignalEncoder
from skelact.backbones.stgcn import STGCN
from skelact.backbones.temporal import TemporalEncoder
from skelact.backbones.token_autoencoder import TokenAutoencoder
from skelact.backbones.tokens import TokenEncoder
from skelact.backbones.transformer import sinusoids_at
from skelact.backbones.video import ImageEncoder
from skelact.benchmarks.straightforward.base import StraightforwardMethod, Views
from skelact.benchmarks.straightforward.stgcn import StraightforwardSTGCN
from skelact.benchmarks.straightforward.tokens import token_form
from skelact.benchmarks.straightforward.umurl import StraightforwardUmURLEncoder
from skelact.clips import Frames, ModalClips, RaggedClips
from skelact.methods.actionmae import ActionMAE
from skelact.methods.multimodal import MultiModal
from skelact.methods.supervised import UNLABELLED
from skelact.transforms.draws import Draws


class _Block(nn.Module):
    def __init__(self, theirs: PreNormBlock) -> None:
        super().__init__()
        self.norm1, self.attn = copy.deepcopy(theirs.norm1), copy.deepcopy(theirs.attn)
        self.norm2, self.mlp = copy.deepcopy(theirs.norm2), copy.deepcopy(theirs.mlp)
        self.heads, self.drop = theirs.attn.num_heads, theirs.drop

    def forward(self, x: Tensor, keep: Tensor | None) -> Tensor:
        x = x + drop_path(self.attention(self.norm1(x), keep), self.drop, self.training, axes=1)
        y = self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))
        return x + drop_path(y, self.drop, self.training, axes=1)

    def attention(self, x: Tensor, keep: Tensor | None) -> Tensor:
        b, s, d = x.shape
        q, k, v = self.attn.qkv(x).view(b, s, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) * (d // self.heads) ** -0.5
        if keep is not None:
            scores = scores.masked_fill(~keep[:, None, None], -torch.inf)
        return self.attn.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, s, d))


class _Transformer(nn.Module):
    def __init__(self, theirs: PreNormTransformer) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Block(cast(PreNormBlock, block)) for block in theirs.blocks)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            x = block(x, keep)
        return x


class _Temporal(nn.Module):
    def __init__(self, theirs: TemporalEncoder) -> None:
        super().__init__()
        self.position, self.norm = theirs.position, copy.deepcopy(theirs.norm)
        self.cls_token, self.transformer = copy.deepcopy(theirs.cls_token), _Transformer(theirs.transformer)

    def forward(self, frames: Tensor, mask: Tensor | None) -> Tensor:
        n, t, d = frames.shape
        if self.position:
            count = torch.ones(n, t, device=frames.device) if mask is None else mask
            frames = frames + sinusoids_at(count.cumsum(1), d)
        keep = None if mask is None else torch.cat([mask.new_ones(n, 1), mask], 1)
        x = torch.cat([self.cls_token.expand(n, -1, -1), frames], 1)
        return self.norm(self.transformer(x, keep)[:, 0])


def _of_frames(network: Callable[[Tensor], Tensor], values: Tensor, mask: Tensor | None) -> Tensor:
    """Features `(n, T, D)` of the frames `(n, T, ...)` in `mask`, zeros for the others."""
    if mask is None:
        return network(values.flatten(0, 1)).unflatten(0, values.shape[:2])
    found = network(values[mask])
    features = found.new_zeros(*mask.shape, found.shape[1])
    features[mask] = found
    return features


class _Images(nn.Module):
    def __init__(self, theirs: ImageEncoder) -> None:
        super().__init__()
        self.use_mask, self.frozen = theirs.use_mask, theirs.frames.frozen
        net = copy.deepcopy(theirs.frames.net).to(memory_format=torch.contiguous_format)
        self.frames, self.project = nn.ModuleDict({"net": net}), copy.deepcopy(theirs.project)
        self.temporal = _Temporal(theirs.temporal)

    def forward(self, part: Frames, draws: Draws) -> Tensor:
        mask = part.mask if self.use_mask else None
        if self.frozen:
            self.frames.eval()
        values = part.values.contiguous()  # (n, T, 3, H, W) in this order, as loaders of the field give them
        features = values if values.dim() == 3 else _of_frames(self.frames["net"], values, mask)
        return self.temporal(self.project(features), mask)


class _Signals(nn.Module):
    def __init__(self, theirs: SignalEncoder) -> None:
        super().__init__()
        self.patch, self.embed, self.temporal = theirs.patch, copy.deepcopy(theirs.embed), _Temporal(theirs.temporal)

    def forward(self, part: Frames, draws: Draws) -> Tensor:
        rest = -part.values.shape[1] % self.patch
        values = F.pad(part.values * part.mask[..., None], (0, 0, 0, rest))
        seen = F.pad(part.mask, (0, rest)).unflatten(1, (-1, self.patch)).any(2)
        return self.temporal(self.embed(values.transpose(1, 2)).transpose(1, 2), seen)


class _Joints(nn.Module):
    def __init__(self, theirs: JointConvEncoder) -> None:
        super().__init__()
        self.views, self.channels, self.use_mask = theirs.sampler.forward, theirs.channels, theirs.use_mask
        self.embed, self.convolutions = copy.deepcopy(theirs.embed), copy.deepcopy(theirs.convolutions)
        self.temporal = _Temporal(theirs.temporal)

    def forward(self, part: RaggedClips, draws: Draws) -> Tensor:
        views, mask = self.views(part, draws)
        views = views if mask is None else views * mask[..., None]
        seen = mask[:, 0].any(-1) if mask is not None and self.use_mask else None
        return self.temporal(_of_frames(self.each, views[:, 0, ..., : self.channels], seen), seen)

    def each(self, body: Tensor) -> Tensor:
        return self.convolutions(self.embed(body).transpose(1, 2)).mean(2)


class _Skeletons(nn.Module):
    def __init__(self, theirs: SkeletonEncoder) -> None:
        super().__init__()
        self.views, self.derive = theirs.views, theirs.derive
        self.reads_mask, self.adapter = isinstance(theirs.backbone, TokenEncoder), copy.deepcopy(theirs.adapter)
        self.backbone = self.network(theirs.backbone)

    @staticmethod
    def network(backbone: Encoder) -> nn.Module:
        if isinstance(backbone, TokenEncoder):
            return token_form(backbone)
        if isinstance(backbone, STGCN):
            return StraightforwardSTGCN(backbone)
        return StraightforwardUmURLEncoder(backbone)

    def forward(self, part: RaggedClips, draws: Draws) -> Tensor:
        views, mask = self.views(part, draws)
        streams = self.derive(views, mask)
        return self.adapter(self.backbone(streams, mask) if self.reads_mask else self.backbone(streams))


FORMS: Mapping[type[ModalityEncoder], Callable[[Any], nn.Module]] = {
    ImageEncoder: _Images,
    SignalEncoder: _Signals,
    JointConvEncoder: _Joints,
    SkeletonEncoder: _Skeletons,
}


class _Fusion(nn.Module):
    def __init__(self, theirs: Fusion) -> None:
        super().__init__()
        self.kind, self.modalities = type(theirs), theirs.modalities
        if isinstance(theirs, SumFusion | LateFusion):
            self.heads = copy.deepcopy(theirs.heads)
        elif isinstance(theirs, TransformerFusion):
            self.cls_token, self.fc = copy.deepcopy(theirs.cls_token), copy.deepcopy(theirs.fc)
            self.transformer = _Transformer(theirs.transformer)
        else:
            self.fc = copy.deepcopy(cast(ConcatFusion, theirs).fc)

    def each(self, tokens: Tensor) -> list[Tensor]:
        """Scores `(N, C)` of each modality alone."""
        return [head(token) for head, token in zip(self.heads, tokens.unbind(1), strict=True)]

    def forward(self, tokens: Tensor, kept: Tensor) -> Tensor:
        """Scores `(N, C)` of the tokens `(N, M, D)` in `kept`."""
        if self.kind is SumFusion:
            return torch.stack(
                [x * has[:, None] for x, has in zip(self.each(tokens), kept.unbind(1), strict=True)]
            ).sum(0)
        if self.kind is ConcatFusion:
            x = (tokens * kept[..., None]).flatten(1)
            return x @ self.fc.weight.T + self.fc.bias * kept.to(x).mean(1, keepdim=True)
        keep = torch.cat([kept.new_ones(len(kept), 1), kept], 1)
        x = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], 1)
        return self.fc(self.transformer(x, keep)[:, 0])


class _Core(nn.Module):
    def __init__(self, theirs: TokenAutoencoder) -> None:
        super().__init__()
        self.memory = theirs.num_memory
        self.mem_token, self.mask_token = copy.deepcopy(theirs.mem_token), copy.deepcopy(theirs.mask_token)
        self.modality_embedding = copy.deepcopy(theirs.modality_embedding)
        self.encoder_norm, self.decoder_norm = copy.deepcopy(theirs.encoder_norm), copy.deepcopy(theirs.decoder_norm)
        self.decoder_pred = copy.deepcopy(theirs.decoder_pred)
        self.encoder, self.decoder = _Transformer(theirs.encoder), _Transformer(theirs.decoder)

    def forward(self, tokens: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Memory `(N, m, D)` and tokens `(N, M, D)` out of the encoder, and predictions `(N, M, D)`."""
        n = len(tokens)
        code: Tensor | float = 0.0 if self.modality_embedding is None else self.modality_embedding
        x, keep = (tokens + code) * kept[..., None], kept
        if self.mem_token is not None:
            x = torch.cat([self.mem_token.expand(n, -1, -1), x], 1)
            keep = torch.cat([kept.new_ones(n, self.memory), kept], 1)
        x = self.encoder_norm(self.encoder(x, keep))
        memory, survivors = x[:, : self.memory], x[:, self.memory :]
        y = torch.where(kept[..., None], survivors, self.mask_token) + code
        y = self.decoder_norm(self.decoder(torch.cat([memory, y], 1)))
        return memory, survivors, self.decoder_pred(y[:, self.memory :])


class StraightforwardMultiModal(StraightforwardMethod):
    """The same networks and loss as a :class:`MultiModal`, with a copy of its weights.

    Args:
        method: whose sizes, weights, draws of views and of what is dropped are taken.

    Raises:
        TypeError: there is no straightforward form of one of its encoders.
    """

    def __init__(self, method: MultiModal) -> None:
        super().__init__()
        self.streams, self.seed, self.width = method.streams, method.seed, method.width
        self.sources = [method.encoder(name).source for name in self.streams]
        self.label_smoothing, self.groups = method.label_smoothing, method.groups
        lacking = [type(encoder) for encoder in method.encoders.children() if type(encoder) not in FORMS]
        if lacking:
            raise TypeError(f"there is no straightforward form of {lacking[0].__name__}")
        encoders = {name: FORMS[type(method.encoder(name))](method.encoder(name)) for name in self.streams}
        self.encoders, self.fusion = nn.ModuleDict(encoders), _Fusion(method.fusion)
        self.policy = method.drop

    def loss(self, batch: Any, views: Views | None) -> Tensor:
        """Loss of one step; `batch` is ready for the networks, `views` are not read."""
        batch = ModalClips.of(batch)
        draws, columns = Draws(self.seed, 0, batch.index), []
        present = torch.stack([batch.has(source) for source in self.sources], 1)
        for name, source, has in zip(self.streams, self.sources, present.unbind(1), strict=True):
            column = self.zeros(len(batch))
            if source in batch.parts:
                rows = has.nonzero()[:, 0]
                column[rows] = self.encoders[name](batch.parts[source], draws.rows(rows))
            columns.append(column)
        labels = batch.label.masked_fill(~present.any(1), UNLABELLED)
        return self.of_tokens(torch.stack(columns, 1), present, labels, draws)

    def zeros(self, count: int) -> Tensor:
        """`(count, D)`."""
        return next(self.fusion.parameters()).new_zeros(count, self.width)

    def of_tokens(self, tokens: Tensor, present: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        """Loss of tokens `(N, M, D)` of which some are present `(N, M)` bool."""
        kept = present if self.policy is None else self.policy(draws, present, self.streams, self.groups, 0)
        if self.fusion.kind is not LateFusion:
            return self.cross_entropy(self.fusion(tokens, kept), labels)
        own = [labels.masked_fill(~has, UNLABELLED) for has in kept.unbind(1)]
        each = zip(self.fusion.each(tokens), own, strict=True)
        return torch.stack([self.cross_entropy(logits, label) for logits, label in each]).mean()

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean over the labelled clips, 0 without any."""
        total = F.cross_entropy(
            logits, labels, ignore_index=UNLABELLED, reduction="sum", label_smoothing=self.label_smoothing
        )
        return total / (labels != UNLABELLED).sum().clamp_min(1)


class StraightforwardActionMAE(StraightforwardMultiModal):
    """The same networks and loss as an :class:`ActionMAE`, with a copy of its weights; see the base."""

    def __init__(self, method: ActionMAE) -> None:
        super().__init__(method)
        self.core, self.dropped = _Core(method.core), method.drop_tokens
        self.fusion_input, self.full_path = method.fusion_input, method.full_path
        self.lambdas = method.lambda_rec, method.lambda_cls
        self.normalise_target, self.detach_target = method.normalise_target, method.detach_target

    def of_tokens(self, tokens: Tensor, present: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        """See the base."""
        kept, order = self.dropped(present, draws, 0)
        memory, survivors, decoded = self.core(tokens, kept)

        fused = torch.where(kept[..., None], tokens, decoded) if self.fusion_input == "bypass" else decoded
        if self.full_path == "memory":  # as released: the encoder's outputs as they lie, shuffled
            if order is not None:
                survivors = torch.stack([x[places] for x, places in zip(survivors, order, strict=True)])
            survivors = torch.cat([memory, survivors], 1)[:, : len(self.streams)]
        if self.full_path == "memory" or self.fusion_input == "decoded":
            fused = torch.where(kept.all(1)[:, None, None], survivors, fused)
        logits = self.fusion(fused, torch.ones_like(kept))

        target = tokens.detach() if self.detach_target else tokens
        if self.normalise_target:
            target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
        missing = present & ~kept
        error = ((decoded - target) ** 2).mean(-1)
        reconstruction = (error * missing).sum() / missing.sum().clamp_min(1)
        return self.lambdas[0] * reconstruction + self.lambdas[1] * self.cross_entropy(logits, labels)
