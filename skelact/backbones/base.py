"""The contract between methods and networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from skelact.clips import RaggedClips


class Encoder(nn.Module):
    """A network that turns streams of dense views into one feature per clip.

    Attributes:
        num_features: width D of the feature.
        streams: names of the streams that it can read.
        stacked: True where every stream has a trunk of its own, all of equal shape, and the feature is theirs side by
            side in the order of `streams`, zeros for a stream that is not given.
        compiles: names of the methods that `trainer.compile` compiles: tensors in, tensors out, and no shape of theirs
            depends on values. Any module inside a method may have this.
    """

    num_features: int
    streams: tuple[str, ...]
    stacked: bool = False
    compiles: ClassVar[tuple[str, ...]] = ("forward_features",)

    def expect(self, batch: RaggedClips) -> None:
        """Be told whose training views come next; what the host knows of them need not be asked of the device."""

    def forward_features(self, streams: Mapping[str, Tensor], mask: Tensor | None = None) -> Tensor:
        """Encode one clip per row.

        Args:
            streams: by name, each `(N, M, T, V, C)`; any non-empty subset of :attr:`streams`.
            mask: `(N, M, T, V)` bool, True where observed; None means everywhere.

        Returns:
            `(N, num_features)`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward_features")

    def forward_many(
        self, inputs: Sequence[Mapping[str, Tensor]], masks: Sequence[Tensor | None] | None = None
    ) -> list[Tensor]:
        """Encode several inputs; networks without batch statistics override this with one joint pass."""
        masks = masks or [None] * len(inputs)
        return [self.forward_features(x, mask) for x, mask in zip(inputs, masks, strict=True)]

    def forward(self, streams: Mapping[str, Tensor], mask: Tensor | None = None) -> Tensor:
        """The same as :meth:`forward_features`."""
        return self.forward_features(streams, mask)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that sort parameters into stem and blocks, for layer-wise learning rates (as in timm)."""
        return {"stem": r"^(?!)", "blocks": r".*"}

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are tables rather than weights and should not decay (as in timm)."""
        return set()
