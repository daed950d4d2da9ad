"""Samplers that pick frames by their indices instead of interpolating between them.

All of them may serve training and evaluation: with draws they give the random rule of :mod:`skelact.transforms.frames`,
without draws the rule for evaluation.
"""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from skelact.clips import RaggedClips
from skelact.transforms.draws import Draws
from skelact.transforms.frames import linspace_index, segment_index, uniform_index, video_index
from skelact.transforms.sampling import Sampler, take


class IndexSampler(Sampler):
    """Frames of each clip, picked by index."""

    @abstractmethod
    def indices(self, length: Tensor, draws: Draws | None) -> Tensor:
        """`(N, T)` int64, which frames of clips of `length` `(N,)` frames; without draws, those for evaluation."""

    def forward(self, clips: RaggedClips, draws: Draws | None = None) -> tuple[Tensor, Tensor | None]:
        """Views `(N, M, T, V, C)` float32 and mask `(N, M, T, V)` or None."""
        return take(clips, self.indices(clips.length, draws))


class UniformIndex(IndexSampler):
    """Evenly spaced frames with jitter in training (MotionBERT, MaskCLR): see `uniform_index`.

    Args:
        frames: T, frames of a view; published with 243, for one-shot with 100.
        jitter: move frames at random in training.
        frozen: one jitter for each clip, the same in all epochs and views, as the released code has it, which draws it
            when the data are loaded. False: a new one each time.
    """

    def __init__(self, frames: int = 64, jitter: bool = True, frozen: bool = False) -> None:
        super().__init__(frames)
        self.jitter, self.frozen = bool(jitter), bool(frozen)

    def indices(self, length: Tensor, draws: Draws | None) -> Tensor:
        """`(N, T)` int64, ascending."""
        if draws is None or not self.jitter:
            return uniform_index(length, self.frames)
        if self.frozen:
            draws = Draws(draws.seed, 0, draws.index)
        return uniform_index(length, self.frames, draws.uniform("index.jitter", self.frames))


class LinspaceIndex(IndexSampler):
    """Evenly spaced frames, first and last included; in training frames drawn with repetition, in order of time.

    The NW-UCLA feeder of CTR-GCN: see `linspace_index`.

    Args:
        frames: T, frames of a view; published with 52.
        jitter: draw frames in training. False: as in evaluation.
    """

    def __init__(self, frames: int = 64, jitter: bool = True) -> None:
        super().__init__(frames)
        self.jitter = bool(jitter)

    def indices(self, length: Tensor, draws: Draws | None) -> Tensor:
        """`(N, T)` int64, ascending."""
        unit = None if draws is None or not self.jitter else draws.uniform("index.linspace", self.frames)
        return linspace_index(length, self.frames, unit)


class UniformSegments(IndexSampler):
    """One frame of each of T equal segments, in training at random (PySkl): see `segment_index`.

    PySkl tests with ten random clips of a fixed seed; here evaluation takes the middle of each segment.

    Args:
        frames: T, frames of a view; published with 100 for graph networks.
    """

    def indices(self, length: Tensor, draws: Draws | None) -> Tensor:
        """`(N, T)` int64."""
        unit = None if draws is None else draws.uniform("index.segment", self.frames + 1)
        return segment_index(length, self.frames, unit)


class VideoFrames(Sampler):
    """All frames of a short clip, unobserved after its end; else T different ones (ActionMAE): see `video_index`.

    The views are those that belong to the image frames which the same rule picks.

    Args:
        frames: T, frames of a view; published with 16.
    """

    def forward(self, clips: RaggedClips, draws: Draws | None = None) -> tuple[Tensor, Tensor | None]:
        """Views `(N, M, T, V, C)` float32 and mask `(N, M, T, V)`."""
        unit = None
        if draws is not None and len(clips):
            unit = draws.uniform("index.video", int(clips.length.max()))
        return take(clips, *video_index(clips.length, self.frames, unit))
