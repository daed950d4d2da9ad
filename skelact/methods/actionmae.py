"""ActionMAE: missing modalities reconstructed from those that are there (Woo et al., AAAI 2023).

Each modality's encoder makes a token of a clip. In training some tokens are dropped; an encoder reads the survivors and
a few memory tokens, a decoder its output with mask tokens in the place of what was dropped, and a linear layer predicts
the dropped tokens. A fusion head classifies survivors and predictions:

    L = lambda_rec * L_rec + lambda_cls * L_cls
    L_rec: mean over the dropped tokens of the squared error to the token, normalised over its D numbers
    L_cls: cross-entropy with label smoothing

At test time what is missing is predicted in the same way. Each difference between paper and released code is an option
(docs/methods.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypedDict

from torch import Tensor
from torch.optim import Optimizer

from skelact.backbones.modality import ModalityEncoder
from skelact.backbones.token_autoencoder import TokenAutoencoder
from skelact.errors import SkelactError
from skelact.methods.multimodal import MultiModal
from skelact.objectives.actionmae import reconstruction_loss
from skelact.transforms.draws import Draws
from skelact.transforms.dropping import DropPolicy, UniformCount


class Switches(TypedDict):
    """Options whose default depends on the preset."""

    fusion_input: str
    full_path: str
    eval_slots: str
    modality_embedding: bool
    drop_count: str


PRESETS: dict[str, Switches] = {
    "as_released": {
        "fusion_input": "decoded",
        "full_path": "memory",
        "eval_slots": "packed",
        "modality_embedding": False,
        "drop_count": "batch",
    },
    "corrected": {
        "fusion_input": "bypass",
        "full_path": "tokens",
        "eval_slots": "own",
        "modality_embedding": True,
        "drop_count": "sample",
    },
}
CHOICES = {
    "fusion_input": ("bypass", "decoded"),
    "full_path": ("tokens", "memory"),
    "eval_slots": ("own", "packed"),
    "drop_count": ("sample", "batch"),
}


class ActionMAE(MultiModal):
    """Random modality drop with reconstruction, and fusion of what is there with what was reconstructed.

    Args:
        encoders: see :class:`MultiModal`.
        modalities: see :class:`MultiModal`.
        num_classes: number of classes.
        width: of a token, D.
        fusion: `sum`, `concat` or `transformer`.
        fusion_depth: blocks of a fusion transformer.
        num_heads: of all attention.
        mlp_ratio: width of hidden layers over D.
        num_memory: memory tokens.
        depth: blocks of the encoder.
        decoder_depth: blocks of the decoder.
        mask_token: `shared`, or one `per_modality`.
        lambda_rec: weight of the reconstruction.
        lambda_cls: weight of the classification.
        normalise_target: reconstruct tokens normalised over their D numbers.
        detach_target: no gradient of the reconstruction into its targets.
        drop: what modalities a clip keeps in training; None: :class:`UniformCount` by `drop_count`.
        fusion_input: `bypass`: the fusion sees survivors as their encoders made them; `decoded`: what the decoder makes
            of them. None: by the preset, as the following four.
        full_path: what it sees of a clip that has everything: its own `tokens` (with `decoded`: the encoder's outputs
            for them), or `memory`: the first M outputs of the encoder, which begin with the memory tokens (a defect).
        eval_slots: at test time survivors stand in their `own` slots, or `packed` in the first ones (a defect).
        modality_embedding: learned embeddings at the inputs of encoder and decoder.
        drop_count: of the default policy: each clip's own number of survivors (`sample`) or one a `batch`.
        label_smoothing: see :class:`MultiModal`.
        layout: see :class:`MultiModal`.
        preset: `corrected`, or `as_released` for the published code's behaviour; fills options that are None.
        position: see :class:`MultiModal`.
        use_padding_mask: see :class:`MultiModal`.
        pretrained: see :class:`MultiModal`.
        optimizer: factory.
        scheduler: factory.
        scheduler_interval: see :class:`Learner`.
        exclude_from_decay: see :class:`Learner`.
        seed: of training views and dropped modalities.

    Raises:
        SkelactError: an option that is none of those named, or both `drop` and `drop_count`.
    """

    def __init__(
        self,
        encoders: Mapping[str, Callable[..., ModalityEncoder]],
        modalities: Sequence[str],
        num_classes: int,
        width: int = 512,
        fusion: Literal["sum", "concat", "transformer"] = "transformer",
        fusion_depth: int = 4,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        num_memory: int = 4,
        depth: int = 2,
        decoder_depth: int = 2,
        mask_token: Literal["shared", "per_modality"] = "shared",
        lambda_rec: float = 1.0,
        lambda_cls: float = 1.0,
        normalise_target: bool = True,
        detach_target: bool = False,
        drop: DropPolicy | None = None,
        fusion_input: Literal["bypass", "decoded"] | None = None,
        full_path: Literal["tokens", "memory"] | None = None,
        eval_slots: Literal["own", "packed"] | None = None,
        modality_embedding: bool | None = None,
        drop_count: Literal["sample", "batch"] | None = None,
        label_smoothing: float = 0.1,
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
        if drop is not None and drop_count is not None:
            raise SkelactError("drop_count is an option of the default policy: give it or `drop`, not both")
        if fusion == "late":
            raise SkelactError(
                "fusion=late trains unimodal experts, which need no reconstruction: take method=multimodal"
            )
        super().__init__(
            encoders, modalities, num_classes, width, fusion, fusion_depth, num_heads, mlp_ratio, drop, label_smoothing,
            None, layout, preset, position, use_padding_mask, pretrained, optimizer, scheduler, scheduler_interval,
            exclude_from_decay, seed,
        )  # fmt: skip
        given = {
            "fusion_input": fusion_input, "full_path": full_path, "eval_slots": eval_slots,
            "modality_embedding": modality_embedding, "drop_count": drop_count,
        }  # fmt: skip
        chosen: dict[str, Any] = {**PRESETS[preset], **{k: v for k, v in given.items() if v is not None}}
        for key, choices in CHOICES.items():
            if chosen[key] not in choices:
                raise SkelactError(f"{key}={chosen[key]} is none of {', '.join(choices)}")
        self.fusion_input, self.full_path, self.eval_slots = (chosen[k] for k in list(CHOICES)[:3])
        self.drop = UniformCount(per=chosen["drop_count"]) if drop is None else drop
        self.core = TokenAutoencoder(
            width, len(self.streams), num_memory, depth, decoder_depth, num_heads, mlp_ratio,
            chosen["modality_embedding"], mask_token,
        )  # fmt: skip
        self.lambda_rec, self.lambda_cls = lambda_rec, lambda_cls
        self.normalise_target, self.detach_target = normalise_target, detach_target

    @property
    def fills(self) -> tuple[str, ...]:
        """See :class:`MultiModal`; reconstruction is the method's own."""
        return ("reconstruct", *super().fills)

    def complete(
        self, tokens: Tensor, kept: Tensor, order: Tensor | None = None, slots: str = "own"
    ) -> tuple[Tensor, Tensor]:
        """What the fusion sees, and the decoder's predictions of all tokens, each `(B, M, D)`.

        Args:
            tokens: `(B, M, D)`.
            kept: `(B, M)` bool, the tokens that may be used.
            order: `(B, M)` int64, in which the tokens are lined up before the encoder; None: as they are.
            slots: `own`, or `packed` as the released evaluation has it.
        """
        encoded, decoded = self.core(tokens, kept, order, slots)
        fused = self.core.choose(tokens, kept, encoded, decoded, order, self.fusion_input, self.full_path)
        return fused, decoded

    def predict(self, tokens: Tensor, kept: Tensor, fill: str, stand_in: Tensor) -> Tensor:
        """See :class:`MultiModal`; without reconstruction survivors pass through as they otherwise would."""
        if fill == "reconstruct":
            return self.fusion(self.complete(tokens, kept, slots=self.eval_slots)[0])
        survivors = tokens if self.fusion_input == "bypass" else self.complete(tokens, kept)[0]
        return super().predict(survivors, kept, fill, stand_in)

    def drop_tokens(self, present: Tensor, draws: Draws, step: int) -> tuple[Tensor, Tensor | None]:
        """What is kept `(N, M)` bool, and the order in which the released code lines tokens up, where that matters."""
        assert self.drop is not None
        params = self.drop.draw(draws, present, self.streams, self.groups, step)
        kept = self.drop.replay(present, self.streams, self.groups, **params)
        shuffled = self.full_path == "memory" and isinstance(self.drop, UniformCount)
        return kept, params["noise"].argsort(1) if shuffled else None

    def losses(
        self, tokens: Tensor, present: Tensor, kept: Tensor, order: Tensor | None, labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction and classification loss of the global batch, and logits `(N, C)`.

        Args:
            tokens: `(N, M, D)` of the encoders.
            present: `(N, M)` bool, what the clips have: only this can be reconstructed.
            kept: `(N, M)` bool, what was not dropped.
            order: see :meth:`complete`.
            labels: `(N,)` int64.
        """
        fused, decoded = self.complete(tokens, kept, order)
        dropped = present & ~kept
        reconstruction = reconstruction_loss(decoded, tokens, dropped, self.normalise_target, self.detach_target)
        logits = self.fusion(fused)
        return reconstruction, self.classification_loss(logits, labels), logits

    def loss(
        self, tokens: Tensor, present: Tensor, labels: Tensor, draws: Draws, step: int
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """See :class:`MultiModal`; reports both terms."""
        kept, order = self.drop_tokens(present, draws, step)
        rec, cls, logits = self.losses(tokens, present, kept, order, labels)
        return self.lambda_rec * rec + self.lambda_cls * cls, logits, {"rec": rec.detach(), "cls": cls.detach()}
