"""Steps of :class:`skelact.transforms.images.VideoTransform`: crops, flips, resizing and colours of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from skelact.errors import SkelactError
from skelact.transforms.base import Params, check_p
from skelact.transforms.draws import Draws

#: Pixels whose colours are jittered at a time, by type of device: ten float32 planes, which a CPU wants in its cache.
_PIXELS = {"cpu": 1 << 19, "cuda": 1 << 23}

Size = int | Sequence[int]


class Step(nn.Module):
    """One step of a :class:`VideoTransform`, on a batch of B frames `(B, H, W, C)`."""

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width afterwards."""
        return height, width

    def draw(self, draws: Draws, height: int, width: int) -> Params:
        """Parameters by name, `(B,)` each, for frames of that size."""
        return {}


class Window(Step):
    """A step that only chooses pixels."""

    def look(self, height: int, width: int, device: torch.device, **params: Tensor) -> tuple[Tensor, Tensor]:
        """Rows `(B, h)` and columns `(B, w)` int64 of a frame, B = 1 where all choose alike; outside means black."""
        raise NotImplementedError


class Pixels(Step):
    """A step that makes new pixels."""

    def replay(self, images: Tensor, **params: Tensor) -> Tensor:
        """`(B, H, W, C)` uint8 to `(B, h, w, C)` uint8."""
        raise NotImplementedError


class CenterCrop(Window):
    """The middle of a frame, with black around it where the frame is smaller.

    Args:
        size: of the crop: a side, or (height, width).
    """

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.crop = _pair(size)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """The crop's."""
        return self.crop

    def look(self, height: int, width: int, device: torch.device, **params: Tensor) -> tuple[Tensor, Tensor]:
        """The same for every frame."""
        rows, columns = (
            torch.arange(out, device=device)[None] + _middle(given, out)
            for given, out in zip((height, width), self.crop, strict=True)
        )
        return rows, columns


class FixedBox(Window):
    """A box of fixed place.

    Args:
        top, left: first row and column.
        height, width: of the box.

    Raises:
        SkelactError: in use, frames that do not hold the box.
    """

    def __init__(self, top: int, left: int, height: int, width: int) -> None:
        super().__init__()
        self.top, self.left, self.crop = top, left, (height, width)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """The box's."""
        bottom, right = self.top + self.crop[0], self.left + self.crop[1]
        if min(self.top, self.left) < 0 or bottom > height or right > width:
            raise SkelactError(
                f"data.images: a box of rows {self.top} to {bottom} and columns {self.left} to {right} does not fit "
                f"frames of {height}x{width}; prepare the store with larger frames (data.media.<modality>.size)"
            )
        return self.crop

    def look(self, height: int, width: int, device: torch.device, **params: Tensor) -> tuple[Tensor, Tensor]:
        """The same for every frame."""
        rows, columns = (torch.arange(out, device=device)[None] for out in self.crop)
        return rows + self.top, columns + self.left


class RandomCrop(Window):
    """A window anywhere in the frame, all places alike.

    Args:
        size: of the crop: a side, or (height, width).

    Raises:
        SkelactError: in use, frames smaller than the crop.
    """

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.crop = _pair(size)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """The crop's."""
        if self.crop[0] > height or self.crop[1] > width:
            raise SkelactError(f"data.images: a crop of {self.crop} is larger than what it is cut of, {height}x{width}")
        return self.crop

    def draw(self, draws: Draws, height: int, width: int) -> Params:
        """`top` and `left`, first row and column."""
        return {
            "top": draws.integers("crop.top", height - self.crop[0] + 1),
            "left": draws.integers("crop.left", width - self.crop[1] + 1),
        }

    def look(self, height: int, width: int, device: torch.device, **params: Tensor) -> tuple[Tensor, Tensor]:
        """Each frame its own."""
        rows, columns = (torch.arange(out, device=device) for out in self.crop)
        return params["top"][:, None] + rows, params["left"][:, None] + columns


class HorizontalFlip(Window):
    """Left and right exchanged.

    Args:
        p: probability.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = check_p(p)

    def draw(self, draws: Draws, height: int, width: int) -> Params:
        """`flip`, bool."""
        return {"flip": draws.coin("flip", self.p)}

    def look(self, height: int, width: int, device: torch.device, **params: Tensor) -> tuple[Tensor, Tensor]:
        """Columns backwards where flipped."""
        columns = torch.arange(width, device=device)
        return torch.arange(height, device=device)[None], torch.where(params["flip"][:, None], columns.flip(0), columns)


class Resize(Pixels):
    """Bilinear with antialiasing, rounded to whole levels.

    Args:
        size: a number: the shorter side, the ratio stays; (height, width): exactly that.
    """

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.target = size if isinstance(size, int) else _pair(size)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width afterwards; the longer side is truncated."""
        if not isinstance(self.target, int):
            return self.target
        short, long = sorted((height, width))
        longer = int(self.target * long / short)
        return (self.target, longer) if height <= width else (longer, self.target)

    def replay(self, images: Tensor, **params: Tensor) -> Tensor:
        """A CPU does it in whole numbers; a GPU in float32, which may differ by one level."""
        height, width = images.shape[1:3]
        size = self.size(height, width)
        if size == (height, width):
            return images
        x = images.permute(0, 3, 1, 2)
        if x.is_cuda:
            x = x.float()
        x = functional.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=True)
        if x.is_floating_point():
            x = x.round_().clamp_(0, 255).to(torch.uint8)
        return x.permute(0, 2, 3, 1)


class ColourJitter(Pixels):
    """Brightness and hue changed, in an order that is drawn.

    Args:
        brightness: b: the levels are multiplied by a factor of U[1 - b, 1 + b].
        hue: the hue is moved by U[-hue, hue] of the circle.
    """

    def __init__(self, brightness: float = 0.5, hue: float = 0.3) -> None:
        super().__init__()
        if not 0 <= brightness <= 1 or not 0 <= hue <= 0.5:
            raise SkelactError(f"ColourJitter: brightness={brightness} must be within 0 and 1, hue={hue} within 0, 0.5")
        self.brightness, self.hue = float(brightness), float(hue)

    def draw(self, draws: Draws, height: int, width: int) -> Params:
        """`brightness` factor, `hue` as a share of the circle, `hue_first` bool."""
        b, h = self.brightness, self.hue
        return {
            "brightness": draws.uniform("jitter.brightness", low=1 - b, high=1 + b),
            "hue": draws.uniform("jitter.hue", low=-h, high=h),
            "hue_first": draws.coin("jitter.order"),
        }

    def replay(self, images: Tensor, **params: Tensor) -> Tensor:
        """Grey levels have no hue."""
        factor, first = params["brightness"], params["hue_first"]
        before, after = torch.where(first, 1, factor).float(), torch.where(first, factor, 1).float()
        shift = (params["hue"] * 255).trunc().float()
        count = max(1, _PIXELS.get(images.device.type, 1 << 19) // (images.shape[1] * images.shape[2]))
        parts = []
        for x, *own in zip(*(a.split(count) for a in (images, before, shift, after)), strict=True):  # bounds the memory
            earlier, moved, later = (a[:, None, None] for a in own)
            planes = [_brighten(plane, earlier) for plane in x.unbind(-1)]
            planes = _shift_hue(planes, moved) if len(planes) == 3 else planes
            parts.append(torch.stack([_brighten(plane, later).to(torch.uint8) for plane in planes], -1))
        return torch.cat(parts)


def _brighten(plane: Tensor, factor: Tensor) -> Tensor:
    """Levels times a factor, truncated."""
    return (plane * factor).floor_().clamp_(max=255)


def _shift_hue(planes: Sequence[Tensor], shift: Tensor) -> list[Tensor]:
    """Move the hue by steps of a circle of 255, through 8-bit hue, saturation and value as Pillow does.

    The rounding is not small: one step of hue is up to six levels of a colour.

    Args:
        planes: red, green and blue `(B, H, W)` float32, whole levels.
        shift: whole steps, to be broadcast.
    """
    red, green, blue = planes
    high, low = torch.maximum(torch.maximum(red, green), blue), torch.minimum(torch.minimum(red, green), blue)
    span = high - low
    divisor = span.clamp(min=1)
    # of the greatest, red: blue - green, green: 2 + red - blue, blue: 4 + green - red, each as the distance from high
    is_red, is_green = red == high, green == high
    ahead = torch.where(is_red, blue, torch.where(is_green, red, green))
    behind = torch.where(is_red, green, torch.where(is_green, blue, red))
    start = torch.where(is_red, 0, torch.where(is_green, 2, 4))
    # double precision where Pillow has it: whole steps of hue are met exactly, and often
    sextant = (((high - ahead) / divisor).double() + start - (high - behind) / divisor).float()
    hue = (sextant.double() / 6 + 1).fmod_(1).float().double().mul_(255).trunc_().float()
    hue = torch.remainder(hue + shift, 256) * (6 / 255)  # 8 bits run over at 256, the circle closes at 255
    depth = high * ((span / high.clamp(min=1)) * 255).trunc_() / 255
    out = []
    for corner in (5, 3, 1):
        place = torch.remainder(hue + corner, 6)
        share = torch.minimum(place, 4 - place).clamp_(0, 1)
        out.append((high - depth * share).add_(0.5).floor_())
    return out


def _pair(size: Size) -> tuple[int, int]:
    """(height, width), whole numbers of at least 1."""
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or min(pair) < 1:
        raise SkelactError(f"data.images: a size is a side or [height, width] of at least one pixel, got {size}")
    return pair[0], pair[1]


def _middle(given: int, out: int) -> int:
    """First place of a centred crop; below 0 where it is wider. Half a pixel goes to the even side, as published."""
    return round((given - out) / 2) if given >= out else -((out - given) // 2)
