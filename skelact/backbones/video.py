"""Encoders of image sequences: any network of timm on single frames, then a transformer over time.

ActionMAE (Woo et al., AAAI 2023) takes ResNet-34 with the ImageNet weights that are timm's `bt_in1k` today.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from skelact.backbones.attention import xavier_linear
from skelact.backbones.modality import ModalityEncoder, each_frame
from skelact.backbones.normalisation import over_ranks
from skelact.backbones.temporal import TemporalEncoder
from skelact.clips import Frames, RaggedClips
from skelact.errors import SkelactError
from skelact.transforms.draws import Draws


class FrameEncoder(nn.Module):
    """A network of timm without its classifier; batch statistics are those of all ranks' frames.

    Args:
        name: of the network in timm.
        tag: which weights; pinned, because timm changes its default. None: that default.
        pretrained: `auto`: the weights if they can be had, otherwise random ones with a warning; True: an error instead
            of the warning; False: random.
        frozen: no gradient, evaluation mode always. Random weights are then the same whatever the seed, so that frame
            features extracted once (`data.cache_features`) are those of every such network.
        chunk: frames at a time where no gradient is needed.
        **options: further arguments of `timm.create_model`.

    Raises:
        SkelactError: timm has no such network or weights, or they were demanded and cannot be had.
    """

    compiles: ClassVar[tuple[str, ...]] = ("forward",)

    def __init__(
        self,
        name: str = "resnet34",
        tag: str | None = "bt_in1k",
        pretrained: Literal["auto"] | bool = "auto",
        frozen: bool = False,
        chunk: int = 256,
        **options: Any,
    ) -> None:
        super().__init__()
        with torch.random.fork_rng([], enabled=frozen):
            if frozen:
                torch.manual_seed(0)
            net = over_ranks(_network(name, tag, pretrained, options))
        # Pixels of all channels beside each other: convolutions, pooling and normalisation are faster so, and the
        # first layer's weights decide.
        self.net = net.to(memory_format=torch.channels_last)
        self.num_features = int(self.net.num_features)  # type: ignore[arg-type]
        self.frozen, self.chunk = frozen, chunk
        if frozen:
            self.net.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> FrameEncoder:
        """Frozen networks stay in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.net.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """`(B, 3, H, W)` float32, normalised, to `(B, num_features)`."""
        if self.net.training or (torch.is_grad_enabled() and not self.frozen):
            return self.net(images)
        with torch.no_grad():
            return torch.cat([self.net(some) for some in images.split(self.chunk)])


class ImageEncoder(ModalityEncoder):
    """Frames of a clip one by one, then over time.

    Args:
        width: token width D; another width than the network's costs a linear layer between them.
        source: see :class:`ModalityEncoder`.
        group: see :class:`ModalityEncoder`.
        name: see :class:`FrameEncoder`.
        tag: see :class:`FrameEncoder`.
        pretrained: see :class:`FrameEncoder`.
        frozen: see :class:`FrameEncoder`. Features of frames may then be given in place of images.
        chunk: see :class:`FrameEncoder`.
        depth: blocks of the transformer over time.
        num_heads: its heads.
        mlp_ratio: inner width of its MLPs over D.
        drop_path: its stochastic depth.
        position: see :class:`TemporalEncoder`.
        use_mask: leave out frames after the end of short clips. As released they are encoded and take part.
        **options: see :class:`FrameEncoder`.
    """

    def __init__(
        self,
        width: int = 512,
        source: str = "rgb",
        group: str | None = None,
        name: str = "resnet34",
        tag: str | None = "bt_in1k",
        pretrained: Literal["auto"] | bool = "auto",
        frozen: bool = False,
        chunk: int = 256,
        depth: int = 2,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.1,
        position: bool = True,
        use_mask: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(width, source, group)
        self.use_mask = use_mask
        self.frames = FrameEncoder(name, tag, pretrained, frozen, chunk, **options)
        features = self.frames.num_features
        self.project = nn.Identity() if features == width else nn.Linear(features, width)
        xavier_linear(self.project)
        self.temporal = TemporalEncoder(width, depth, num_heads, mlp_ratio, drop_path, position)

    def forward(self, part: RaggedClips | Frames, draws: Draws | None = None) -> Tensor:
        """See :class:`ModalityEncoder`.

        Raises:
            SkelactError: features of another width than the network's, or no frames at all.
        """
        part = self.read(part, Frames)
        values, mask = part.values, part.seen if self.use_mask else None
        width = self.frames.num_features
        if values.dim() == 3 and values.shape[2] != width:
            raise SkelactError(
                f"features of {values.shape[2]} numbers a frame were given for {self.source}, but the network gives "
                f"{width}: they are of another network"
            )
        features = values if values.dim() == 3 else each_frame(self.frames, values, width, mask, part.count)
        return self.temporal(self.project(features), mask)


def _network(name: str, tag: str | None, pretrained: Literal["auto"] | bool, options: dict[str, Any]) -> nn.Module:
    """A network of timm without its classifier; see :class:`FrameEncoder`."""
    import timm  # slow to import, and only methods that read images need it

    if pretrained not in ("auto", True, False):
        raise SkelactError(f"pretrained={pretrained} is none of auto, true, false")
    full = f"{name}.{tag}" if tag else name
    build = functools.partial(timm.create_model, full, num_classes=0, **options)
    try:
        if not pretrained:
            return build(pretrained=False)
        file, reason = _weights(timm.models.get_pretrained_cfg(full))
        if not reason:
            try:
                return build(pretrained=True, pretrained_cfg_overlay={"file": file} if file else None)
            except (OSError, ValueError) as error:  # no such file there, or the download broke off
                reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    except RuntimeError as error:
        raise SkelactError(
            f"timm cannot build name={name} with tag={tag}: {error}. Weights of a network are listed by "
            f"timm.list_pretrained('{name}*')"
        ) from error
    message = f"the weights {full} cannot be had ({reason})"
    if pretrained != "auto":
        raise SkelactError(f"{message}: put them into the Hugging Face cache, or set pretrained=false")
    warnings.warn(f"{message}: the network starts from random weights; pretrained=false says so", stacklevel=4)
    return build(pretrained=False)


def _weights(config: Any) -> tuple[str | None, str]:
    """Where the weights lie in the local cache, if they do; otherwise why asking for them over the network is vain."""
    from huggingface_hub import try_to_load_from_cache

    if config is None:
        return None, "timm knows none"
    if not config.hf_hub_id:
        return None, ""
    for file in ("model.safetensors", "pytorch_model.bin"):
        if isinstance(path := try_to_load_from_cache(config.hf_hub_id, file), str):
            return path, ""
    return None, _unreachable()


@functools.cache
def _unreachable() -> str:
    """Why the hub cannot be reached, asked once and quickly: a download would try for most of a minute to find out."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=3)
    except Exception as error:  # the client's own classes depend on its version
        return f"{constants.ENDPOINT}: {type(error).__name__}"
    return ""
