"""From stored pictures of videos to the input of an image network: crops, resizing, jitter, flips, normalisation.

Everything happens to all frames of a batch at once, on their device, in 8 bit until the last step. Steps that only
choose pixels (crops, flips) name the rows and columns they choose; neighbours are put together, and the pixels are
gathered once. Numbers follow Pillow, which the recipes were published with: each step rounds to whole grey levels.

Source: the transforms of ActionMAE (Woo et al., AAAI 2023), see :func:`published`. There each frame draws its own crop,
jitter and flip; here a clip draws once, unless `consistent=False`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from skelact.data.colour import jet_table
from skelact.errors import SkelactError
from skelact.transforms.base import Params, _scopes
from skelact.transforms.draws import Draws
from skelact.transforms.image_steps import (
    CenterCrop,
    ColourJitter,
    FixedBox,
    HorizontalFlip,
    Pixels,
    RandomCrop,
    Resize,
    Step,
    Window,
)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class VideoTransform(nn.Module):
    """Stored frames of clips to the input of an image network: scaled to [0, 1] and normalised.

    Args:
        train: steps of training, in order.
        test: steps of evaluation; none of them draws.
        consistent: one draw a clip, over all of its frames; False: each frame its own, as published.
        colour: `jet` where frames are indices into :func:`skelact.data.colour.jet_table`; None: rgb, or grey, which is
            repeated.
        mean, std: of the three channels.

    Raises:
        SkelactError: an unknown colour.
    """

    mean: Tensor
    std: Tensor
    table: Tensor

    def __init__(
        self,
        train: Sequence[nn.Module],
        test: Sequence[nn.Module],
        consistent: bool = True,
        colour: str | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        if colour not in (None, "jet"):
            raise SkelactError(f"data.images: colour={colour!r} is neither null nor jet")
        self.train_steps, self.test_steps = nn.ModuleList(train), nn.ModuleList(test)
        self.consistent, self.colour = consistent, colour
        self.register_buffer("mean", 255 * torch.tensor(mean, dtype=torch.float32), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std, dtype=torch.float32), persistent=False)
        self.register_buffer("table", torch.from_numpy(jet_table().copy()), persistent=False)

    def draw(self, draws: Draws, images: Tensor) -> Params:
        """Parameters of all training steps for frames `(n, T, H, W, C)`, as `step/name`, `(n T,)` each, clip by clip.

        A step is its class name and a count (`RandomCrop0/top`).
        """
        n, t, height, width = images.shape[:4]
        if not self.consistent:
            row = torch.arange(n * t, device=draws.index.device)
            draws = draws.frames(row // t, row % t)
        params: Params = {}
        for scope, step in zip(_scopes(self.train_steps), self.train_steps, strict=True):  # type: ignore[arg-type]
            assert isinstance(step, Step)
            for name, value in step.draw(draws.scope(scope), height, width).items():
                params[f"{scope}/{name}"] = value.repeat_interleave(t) if self.consistent else value
            height, width = step.size(height, width)
        return params

    def replay(self, images: Tensor, mask: Tensor, params: Params | None) -> Tensor:
        """Apply with given parameters, see :meth:`draw`; None: the steps of evaluation."""
        if images.dtype != torch.uint8 or images.ndim != 5 or images.shape[-1] not in (1, 3):
            raise SkelactError(f"frames must be (n, T, H, W, 1 or 3) uint8, got {tuple(images.shape)} {images.dtype}")
        n, t, height, width, channels = images.shape
        if self.colour and channels != 1:
            raise SkelactError("data.images: colour=jet wants stored indices of one channel; set it to null")
        steps = self.test_steps if params is None else self.train_steps
        pixels, device = images.flatten(0, 1), images.device
        window: tuple[Tensor, Tensor] | None = None
        padded = False
        for scope, step in zip(_scopes(steps), steps, strict=True):  # type: ignore[arg-type]
            own = {k.removeprefix(f"{scope}/"): v for k, v in (params or {}).items() if k.startswith(f"{scope}/")}
            size = step.size(height, width)  # type: ignore[operator]
            if isinstance(step, Window):
                looked = step.look(height, width, device, **own)
                window = looked if window is None else (_through(window[0], looked[0]), _through(window[1], looked[1]))
                padded |= size[0] > height or size[1] > width
            elif isinstance(step, Pixels):
                pixels, window, padded = step.replay(self._cut(pixels, window, padded), **own), None, False
            height, width = size
        pixels = self._cut(pixels, window, padded)
        out = (pixels - self.mean).div_(self.std)  # one channel becomes three here
        out = out.view(n, t, height, width, 3).permute(0, 1, 4, 2, 3)
        return out.masked_fill_(~mask[:, :, None, None, None], 0)

    def forward(self, images: Tensor, mask: Tensor, draws: Draws | None = None) -> Tensor:
        """Images for a network.

        Args:
            images: `(n, T, H, W, C)` uint8, C 3 or 1.
            mask: `(n, T)` bool, False behind the end of a short clip.
            draws: of the n clips, in training; None: the steps of evaluation.

        Returns:
            `(n, T, 3, H', W')` float32, channels last in memory; zeros where the mask is False.
        """
        with torch.no_grad():
            return self.replay(images, mask, None if draws is None else self.draw(draws, images))

    def _cut(self, pixels: Tensor, window: tuple[Tensor, Tensor] | None, padded: bool) -> Tensor:
        """The chosen pixels, in colour where they are indices: what is outside the frame is black, not index 0."""
        outside = None
        if window is not None:
            (rows, columns), (b, height, width, c) = window, pixels.shape
            if padded:
                below, beyond = ((at < 0) | (at >= end) for at, end in ((rows, height), (columns, width)))
                outside = (below[:, :, None] | beyond[:, None, :])[..., None]
                rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
            # whole rows first, which are contiguous: a CPU is several times slower at picking pixel by pixel
            rows = torch.arange(b, device=rows.device)[:, None] * height + rows
            kept = pixels.reshape(b * height, width * c).index_select(0, rows.flatten()).view(b, -1, width * c)
            columns = (columns[:, None, :, None] * c + torch.arange(c, device=columns.device)).flatten(2)
            pixels = kept.gather(2, columns.expand(b, kept.shape[1], -1)).view(b, kept.shape[1], -1, c)
        if self.colour and pixels.shape[-1] == 1:
            pixels = self.table.index_select(0, pixels.flatten().int()).view(*pixels.shape[:3], 3)
        return pixels if outside is None else pixels.masked_fill_(outside, 0)


def _through(inner: Tensor, chosen: Tensor) -> Tensor:
    """What a window chooses of the places that an earlier one chose: `(B, k)` of `(B, K)`; outside stays outside."""
    count = max(len(inner), len(chosen))
    last = inner.shape[1] - 1
    places = inner.expand(count, -1).gather(1, chosen.clamp(0, last).expand(count, -1))
    return places.masked_fill((chosen < 0) | (chosen > last), -1)


def published(
    recipe: str, size: int = 224, consistent: bool = True, colour: str | None = None, jitter: bool = True
) -> VideoTransform:
    """The transforms of ActionMAE for images of any size; 0.8 and 1.2 times the size are truncated, 179 and 268 of 224.

    Args:
        recipe: `zoom`: RGB of NTU RGB+D and NW-UCLA; `zoom_train`: the same without the zoom at test, RGB of NTU-120 as
            released; `crop`: depth and infrared of NTU, depth of NW-UCLA; `box`: RGB of UWA3D, the part of a 320 x 240
            picture that holds the actor; `stretch`: depth of UWA3D, whatever its shape.
        size: S, side of the images.
        consistent: see :class:`VideoTransform`; the released code has False.
        colour: see :class:`VideoTransform`.
        jitter: whether colours of `zoom` and `box` are jittered in training.

    Raises:
        SkelactError: an unknown recipe.
    """
    small, large = int(0.8 * size), int(1.2 * size)
    colours = [ColourJitter()] if jitter else []
    if recipe in ("zoom", "zoom_train"):
        train = [CenterCrop(size), RandomCrop(small), Resize(size), *colours, HorizontalFlip()]
        test: list[Step] = [CenterCrop(small), Resize(size)] if recipe == "zoom" else [CenterCrop(size)]
    elif recipe == "crop":
        train, test = [CenterCrop(large), RandomCrop(size), HorizontalFlip()], [CenterCrop(size)]
    elif recipe == "box":
        test = [FixedBox(64, 72, 176, 176), Resize((size, size))]
        train = [*test, *colours, HorizontalFlip()]
    elif recipe == "stretch":
        test = [Resize((size, size))]
        train = [*test, HorizontalFlip()]
    else:
        raise SkelactError(f"data.images: recipe={recipe!r} is none of zoom, zoom_train, crop, box, stretch")
    return VideoTransform(train, test, consistent, colour)
