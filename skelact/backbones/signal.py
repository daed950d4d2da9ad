"""Encoder of signals: rows of numbers over time, such as those of inertial sensors."""

from __future__ import annotations

from torch import Tensor, nn

from skelact.backbones.modality import ModalityEncoder
from skelact.backbones.temporal import TemporalEncoder
from skelact.clips import Frames, RaggedClips
from skelact.errors import SkelactError
from skelact.transforms.draws import Draws


class SignalEncoder(ModalityEncoder):
    """Patches of consecutive rows, each a linear map of its numbers, then a transformer over time.

    Args:
        width: token width D.
        channels: numbers in a row.
        source: see :class:`ModalityEncoder`.
        group: see :class:`ModalityEncoder`.
        patch: rows in a patch; the last patch may be filled up with zeros.
        depth: blocks of the transformer over time.
        num_heads: its heads.
        mlp_ratio: inner width of its MLPs over D.
        drop_path: its stochastic depth.
    """

    def __init__(
        self,
        width: int,
        channels: int,
        source: str = "inertial",
        group: str | None = None,
        patch: int = 4,
        depth: int = 2,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.1,
    ) -> None:
        super().__init__(width, source, group)
        self.channels, self.patch = int(channels), int(patch)
        self.embed = nn.Conv1d(channels, width, self.patch, stride=self.patch)
        self.temporal = TemporalEncoder(width, depth, num_heads, mlp_ratio, drop_path)

    def forward(self, part: RaggedClips | Frames, draws: Draws | None = None) -> Tensor:
        """See :class:`ModalityEncoder`; rows after the end of short clips are left out.

        Raises:
            SkelactError: rows of another number of channels.
        """
        part = self.read(part, Frames)
        values, mask = part.values, part.seen
        if values.dim() != 3 or values.shape[2] != self.channels:
            raise SkelactError(
                f"SignalEncoder was built for channels={self.channels}, but {self.source} has clips of shape "
                f"{tuple(values.shape[1:])}"
            )
        rest = -values.shape[1] % self.patch
        if mask is not None:
            values = values.masked_fill(~mask[..., None], 0)
            mask = nn.functional.pad(mask, (0, rest), value=False).unflatten(1, (-1, self.patch)).any(2)
        values = nn.functional.pad(values, (0, 0, 0, rest))
        return self.temporal(self.embed(values.transpose(1, 2)).transpose(1, 2), mask)
