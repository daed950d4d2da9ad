"""Recognition from several modalities, of which some may be missing: fusion of one token a modality.

The baselines of ActionMAE (Woo et al., AAAI 2023): each modality's encoder makes a token of a clip, and a head reads
the tokens that are there. Further ones: plain modality dropout (`drop`), late fusion of unimodal experts
(`fusion=late`) and gradient modulation (`ogm_alpha`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from skelact.backbones.fusion import ConcatFusion, LateFusion, SumFusion, TransformerFusion
from skelact.backbones.modality import ModalityEncoder
from skelact.backbones.released import begin_with
from skelact.backbones.temporal import TemporalEncoder
from skelact.clips import ModalClips, RaggedClips, spread, zero_clips
from skelact.errors import SkelactError
from skelact.methods.base import Learner
from skelact.methods.modulation import coefficients, scale_gradients
from skelact.methods.supervised import UNLABELLED, count_correct, cross_entropy_sum
from skelact.objectives import all_reduce, largest, world_size
from skelact.skeleton.layouts import get_layout
from skelact.skeleton.streams import derive
from skelact.transforms.draws import Draws
from skelact.transforms.dropping import DropPolicy, subset_table, subsets_of

FUSIONS = {"sum": SumFusion, "concat": ConcatFusion, "transformer": TransformerFusion, "late": LateFusion}
Clips = RaggedClips | ModalClips


class MultiModal(Learner):
    """A token of each modality, and one head on those that are there.

    Args:
        encoders: by modality, each called with `width=`; those of `modalities` alone are called.
        modalities: what is read, in the order of the tokens.
        num_classes: number of classes.
        width: of a token, D.
        fusion: `sum`, `concat`, `transformer`, or `late`: unimodal classifiers, each trained on the clips that have its
            modality (the loss is the mean of theirs), whose logits are averaged.
        fusion_depth: blocks of a fusion transformer.
        num_heads: of its attention.
        mlp_ratio: width of its hidden layers over D.
        drop: what modalities a clip keeps in training; None: all that it has.
        label_smoothing: of the training loss.
        ogm_alpha: strength of gradient modulation, published 1; None: none.
        layout: joint layout of the skeletons, where there are any.
        preset: `corrected`, or `as_released` for the published code's behaviour; fills options that are None.
        position: sinusoids in the encoders' transformers over time; None: not as released, else as each encoder has it.
        use_padding_mask: frames after the end of short clips, and joints that were not observed, take no part; None:
            likewise.
        pretrained: a run whose encoders this one begins with, for example of unimodal experts.
        optimizer: factory.
        scheduler: factory.
        scheduler_interval: see :class:`Learner`.
        exclude_from_decay: see :class:`Learner`.
        seed: of training views and dropped modalities.

    Raises:
        SkelactError: an option that is none of those named, or a modality without an encoder.
    """

    mode = "train"
    space = "feature"
    monitor = "val/mean_top1"
    joins: str | None = "its losses are means over the tokens that are there, of which batches have differently many"
    whole: str | None = "encoders of modalities that no clip of a batch has are not run"

    def __init__(
        self,
        encoders: Mapping[str, Callable[..., ModalityEncoder]],
        modalities: Sequence[str],
        num_classes: int,
        width: int = 512,
        fusion: Literal["sum", "concat", "transformer", "late"] = "transformer",
        fusion_depth: int = 4,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        drop: DropPolicy | None = None,
        label_smoothing: float = 0.1,
        ogm_alpha: float | None = None,
        layout: str | Mapping[str, Any] | None = None,
        preset: Literal["as_released", "corrected"] = "corrected",
        position: bool | None = None,
        use_padding_mask: bool | None = None,
        pretrained: str | None = None,
        optimizer: Callable[..., Optimizer] | None = None,
        scheduler: Callable[[Optimizer], Any] | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
        exclude_from_decay: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer, scheduler, scheduler_interval, exclude_from_decay, seed)
        if preset not in ("as_released", "corrected"):
            raise SkelactError(f"preset={preset!r} is neither corrected nor as_released")
        if fusion not in FUSIONS:
            raise SkelactError(f"fusion={fusion} is none of {', '.join(FUSIONS)}")
        self.streams, self.preset = tuple(modalities), preset
        lacking = [name for name in self.streams if name not in encoders]
        if lacking or not self.streams or len(set(self.streams)) < len(self.streams):
            raise SkelactError(f"modalities={list(self.streams)} must be some of {', '.join(encoders)}, each once")
        self.encoders = nn.ModuleDict({name: encoders[name](width=width) for name in self.streams})
        self._switch(position, use_padding_mask)
        if pretrained is not None:
            begin_with(self.encoders, pretrained)
        self.groups = {name: self.encoder(name).group for name in self.streams}
        deep = {"depth": fusion_depth, "num_heads": num_heads, "mlp_ratio": mlp_ratio}
        own = deep if fusion == "transformer" else {}
        self.fusion = FUSIONS[fusion](width, len(self.streams), num_classes, **own)
        self.width, self.num_classes = width, num_classes
        self.drop, self.label_smoothing, self.ogm_alpha = drop, label_smoothing, ogm_alpha
        self.layout = None if layout is None else get_layout(layout)
        if ogm_alpha is not None and not isinstance(self.fusion, SumFusion | ConcatFusion):
            raise SkelactError(
                f"ogm_alpha compares unimodal logits inside a fusion: take fusion=sum or concat, not {fusion}"
            )
        self._modulation = torch.ones(len(self.streams))
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._seen: Tensor | None = None

    def _switch(self, position: bool | None, use_padding_mask: bool | None) -> None:
        """Have all encoders do what the released code does or does not, where it is asked for."""
        given = {"position": position, "use_mask": use_padding_mask}
        released = {key: False for key, value in given.items() if value is None and self.preset == "as_released"}
        places: dict[str, list[Any]] = {
            "position": [module for module in self.encoders.modules() if isinstance(module, TemporalEncoder)],
            "use_mask": [encoder for encoder in self.encoders.children() if hasattr(encoder, "use_mask")],
        }
        for key, value in {**given, **released}.items():
            for module in places[key] if value is not None else ():
                setattr(module, key, value)

    @property
    def fills(self) -> tuple[str, ...]:
        """Ways to stand in for a missing modality; the first is the method's own."""
        late = ("late_average",) if isinstance(self.fusion, SumFusion | ConcatFusion) else ()
        return ("drop", "zero_token", "mean_token", "zero_input", *late)

    @property
    def num_features(self) -> int:
        """Width of what :meth:`features` returns."""
        return self.width * len(self.streams)

    def encoder(self, name: str) -> ModalityEncoder:
        """Of one modality."""
        return self.encoders[name]  # type: ignore[return-value]

    def _table(self, subsets: Iterable[Sequence[str]], device: torch.device) -> Tensor:
        """`(S, M)` bool, the modalities of each subset."""
        return subset_table(tuple(tuple(subset) for subset in subsets), self.streams, device)

    def available(self, batch: Clips, streams: Sequence[str] | None = None) -> Tensor:
        """`(N, M)` bool: which clip has which modality, out of some (None: all)."""
        batch = ModalClips.of(batch)
        has = torch.stack([batch.has(self.encoder(name).source) for name in self.streams], 1)
        return has if streams is None else has & self._table([streams], batch.device)

    def tokens(
        self, batch: Clips, draws: Draws | None = None, streams: Sequence[str] | None = None
    ) -> tuple[Tensor, Tensor]:
        """What the encoders make of a batch; no encoder is run for a modality that it has no part of.

        Args:
            batch: N clips.
            draws: in training.
            streams: the modalities that are looked at; None: all.

        Returns:
            Tokens `(N, M, D)`, zeros where absent, and what is present `(N, M)` bool.
        """
        batch, made = ModalClips.of(batch), dict[str, Tensor]()
        self._shapes.update({source: part.shape for source, part in batch.parts.items()})
        for name in self.streams if streams is None else [n for n in self.streams if n in streams]:
            encoder = self.encoder(name)
            if (part := batch.parts.get(encoder.source)) is not None:
                rows = batch.rows(encoder.source)
                token = encoder(part, None if draws is None else draws.rows(rows))
                made[name] = spread(token, rows, len(batch))
        zeros = torch.zeros(len(batch), self.width, device=batch.device)
        return torch.stack([made.get(name, zeros) for name in self.streams], 1), self.available(batch, streams)

    def predict(self, tokens: Tensor, kept: Tensor, fill: str, stand_in: Tensor) -> Tensor:
        """Logits `(B, C)` of tokens `(B, M, D)` of which `kept` `(B, M)` may be used.

        Args:
            tokens: `(B, M, D)`.
            kept: `(B, M)` bool.
            fill: out of :attr:`fills`.
            stand_in: `(M, D)`, in the place of what is not kept, where the fill has such.
        """
        if fill == "drop":
            return self.fusion(tokens, kept)
        if fill == "late_average":
            assert isinstance(self.fusion, SumFusion | ConcatFusion)
            each = self.fusion.unimodal(tokens).where(kept.T[..., None], 0)
            return each.sum(0) / kept.sum(1, keepdim=True).clamp_min(1)
        return self.fusion(torch.where(kept[..., None], tokens, stand_in))

    def classify_subsets(
        self,
        batch: Clips,
        subsets: Sequence[Sequence[str]],
        fill: str | None = None,
        means: Tensor | None = None,
        encoded: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Class scores when only some modalities are there; each encoder runs once, the head once for all subsets.

        Args:
            batch: N clips.
            subsets: S of them, names of modalities.
            fill: how missing ones are stood in for, out of :attr:`fills`; None: the first.
            means: `(M, D)` of :meth:`token_means`, for `mean_token`.
            encoded: what :meth:`tokens` has made of the batch, where several fills are asked.

        Returns:
            `(S, N, C)`; zeros for a clip of which nothing is left.

        Raises:
            SkelactError: no such fill, a subset of other names, or means missing.
        """
        fill = self.fills[0] if fill is None else fill
        if fill not in self.fills:
            raise SkelactError(f"fill={fill} is none of this method's: {', '.join(self.fills)}")
        table = self._table(subsets, batch.device)
        looked_at = [name for name in self.streams if any(name in subset for subset in subsets)]
        tokens, present = self.tokens(batch, streams=looked_at) if encoded is None else encoded
        kept = (table[:, None] & present).flatten(0, 1)
        many = tokens.expand(len(table), *tokens.shape).flatten(0, 1)
        logits = self.predict(many, kept, fill, self._stand_in(fill, means, tokens))
        return logits.masked_fill(~kept.any(1, keepdim=True), 0).unflatten(0, (len(table), len(batch)))

    def classify(
        self,
        batch: Clips,
        streams: Sequence[str] | None = None,
        fill: str | None = None,
        means: Tensor | None = None,
    ) -> Tensor:
        """Class scores `(N, C)` from some modalities (None: all), see :meth:`classify_subsets`."""
        return self.classify_subsets(batch, [self.streams if streams is None else streams], fill, means)[0]

    def _stand_in(self, fill: str, means: Tensor | None, like: Tensor) -> Tensor:
        """`(M, D)` tokens in the place of missing ones."""
        if fill == "mean_token":
            if means is None:
                raise SkelactError("fill=mean_token needs `means`, see token_means")
            return means.to(like)
        if fill != "zero_input":
            return like.new_zeros(len(self.streams), self.width)
        blanks = []
        for name in self.streams:
            encoder = self.encoder(name)
            if encoder.source not in self._shapes:
                raise SkelactError(f"fill=zero_input: no clip with {name} was seen yet, so that its shape is not known")
            part = zero_clips(1, self._shapes[encoder.source], like)
            blanks.append(encoder(encoder.blank(part))[0])
        return torch.stack(blanks).to(like)

    @torch.no_grad()
    def token_means(self, batches: Iterable[Clips]) -> Tensor:
        """`(M, D)` mean token of each modality over the clips that have it, of batches of training clips."""
        total, count = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        for batch in batches:
            tokens, present = self.tokens(batch)
            total, count = total + tokens.sum(0), count + present.sum(0)[:, None]
        return total / count.clamp_min(1)

    def features(self, batch: Clips, streams: Sequence[str] | None = None) -> Tensor:
        """`(N, M D)` tokens side by side, zeros where absent or not among `streams`."""
        return self.tokens(batch, streams=streams)[0].flatten(1)

    def forward(self, batch: Clips) -> Tensor:
        """The same as :meth:`features` with all modalities."""
        return self.features(batch)

    def sample(self, batch: Clips) -> tuple[Tensor, Tensor | None]:
        """Evaluation views `(N, M, T, V, C)` of the skeletons and their mask; zeros for clips without one.

        Raises:
            SkelactError: no modality is a skeleton, or no clip of the batch has one.
        """
        batch = ModalClips.of(batch)
        for name in self.streams:
            encoder = self.encoder(name)
            if isinstance(part := batch.parts.get(encoder.source), RaggedClips):
                views, mask = encoder.sampler(part, None)  # type: ignore[operator]
                rows = batch.rows(encoder.source)
                return spread(views, rows, len(batch)), None if mask is None else spread(mask, rows, len(batch))
        raise SkelactError(f"no skeleton among modalities {', '.join(self.streams)} of these clips")

    def derive(
        self, views: Tensor, streams: Sequence[str] | None = None, mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Streams of the skeletons that :meth:`sample` gives, by name; the joints where `streams` is None."""
        if self.layout is None:
            raise SkelactError(f"{type(self).__name__} was built without `layout` and knows no skeletons")
        views = views if mask is None else views.masked_fill(~mask[..., None], 0.0)
        return derive(views, ("joint",) if streams is None else tuple(streams), self.layout, mask)

    def agree(self, batch: Clips) -> ModalClips:
        """The batch with a part of no clips of each modality that only other ranks have.

        Its encoder then takes part in statistics and gradients of the global batch. What any rank has is known from the
        shapes of a clip of each part, exchanged at once; this waits for the other ranks.
        """
        if world_size() == 1 or isinstance(batch, RaggedClips):
            return ModalClips.of(batch)
        sources = list(dict.fromkeys(self.encoder(name).source for name in self.streams))
        own = [batch.parts[source].shape if source in batch.parts else () for source in sources]
        shapes = largest(torch.tensor([[*shape, *[0] * (4 - len(shape))] for shape in own], device=batch.device))
        found = {source: [size for size in row if size] for source, row in zip(sources, shapes.tolist(), strict=True)}
        like = next(self.parameters())
        others = {s: zero_clips(0, shape, like) for s, shape in found.items() if shape and s not in batch.parts}
        return replace(batch, parts={**batch.parts, **others})

    def _tied(self, batch: ModalClips) -> Tensor:
        """0, of the parameters that are not used in a step: all ranks' gradients are waited for."""
        idle = [self.encoder(name) for name in self.streams if self.encoder(name).source not in batch.parts]
        unused = [p.sum() for encoder in idle for p in encoder.parameters() if p.requires_grad]
        return 0.0 * torch.stack(unused).sum() if unused else torch.zeros((), device=batch.device)

    def loss(
        self, tokens: Tensor, present: Tensor, labels: Tensor, draws: Draws, step: int
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The loss of the global batch, logits `(N, C)`, and further values to report.

        Args:
            tokens: `(N, M, D)`.
            present: `(N, M)` bool.
            labels: `(N,)` int64.
            draws: of what is dropped.
            step: number of the batch.
        """
        kept = present if self.drop is None else self.drop(draws, present, self.streams, self.groups, step)
        logits = self.fusion(tokens, kept)
        if isinstance(self.fusion, LateFusion):
            return self.expert_loss(self.fusion.unimodal(tokens), labels, kept), logits, {}
        if self.ogm_alpha is not None and isinstance(self.fusion, SumFusion | ConcatFusion):
            each = self.fusion.unimodal(tokens.detach())
            self._modulation = coefficients(each, labels, kept, self.ogm_alpha, self.preset)
        return self.classification_loss(logits, labels), logits, {}

    def classification_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of the labelled clips of all ranks; of logits `(N, C)`."""
        total = cross_entropy_sum(logits, labels, self.label_smoothing)
        total, clips = all_reduce(torch.stack([total, (labels != UNLABELLED).sum().to(total)])).unbind()
        return total / clips.clamp_min(1)

    def expert_loss(self, logits: Tensor, labels: Tensor, kept: Tensor) -> Tensor:
        """Mean over M experts of their :meth:`classification_loss`, of logits `(M, N, C)`."""
        own = [labels.masked_fill(~column, UNLABELLED) for column in kept.unbind(1)]
        return torch.stack([self.classification_loss(x, y) for x, y in zip(logits, own, strict=True)]).mean()

    def training_step(self, batch: Clips, batch_idx: int = 0) -> Tensor:
        """The loss of the labelled clips of the global batch, whatever modalities the ranks' shares have."""
        batch = self.agree(batch)
        draws = Draws(self.seed, self.current_epoch, batch.index)
        tokens, present = self.tokens(batch, draws)
        labels = batch.label.masked_fill(~present.any(1), UNLABELLED)  # of clips that there is something of
        loss, logits, values = self.loss(tokens, present, labels, draws, batch_idx)
        _, right, clips = all_reduce(count_correct(logits.detach(), labels, loss.detach())).unbind()
        self.report({"loss": loss.detach(), "top1": 100 * right / clips.clamp_min(1), **values}, len(batch))
        return loss + self._tied(batch)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Gradient modulation of the encoders; as released also of unimodal heads, whose names tell the modality."""
        if self.ogm_alpha is None:
            return
        heads = self.fusion.heads if self.preset == "as_released" and isinstance(self.fusion, SumFusion) else ()
        for place, encoder in enumerate(self.encoders.children()):
            scale_gradients([encoder, *heads[place : place + 1]], self._modulation[place])

    def on_validation_epoch_start(self) -> None:
        """Forget what was counted before."""
        self._seen = None

    def validation_step(self, batch: Clips, batch_idx: int = 0) -> None:
        """Count with everything that a clip has, and over subsets; a rank's share may be empty."""
        if len(batch):
            logits = self.classify_subsets(batch, subsets_of(self.streams))
            full = logits[-1]
            seen = count_correct(full, batch.label, cross_entropy_sum(full, batch.label))
            right = ((logits.argmax(2) == batch.label) & logits.any(2)).float().mean(0).sum()  # zeros are no answer
            seen = torch.cat([seen, right[None]])
            self._seen = seen if self._seen is None else self._seen + seen

    def on_validation_epoch_end(self) -> None:
        """Log the means over all clips of all ranks, each clip once."""
        seen = all_reduce(torch.zeros(4, device=self.device) if self._seen is None else self._seen)
        loss, top1, mean = seen[[0, 1, 3]] / seen[2].clamp_min(1)
        if self._trainer is not None:
            found = {"val/loss": loss, "val/top1": 100 * top1, "val/mean_top1": 100 * mean}
            self.log_dict(found, sync_dist=True)
