from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from skelact.data.colour import jet_index, jet_table
from skelact.errors import SkelactError
from skelact.transforms.draws import Draws
from skelact.transforms.images import (
    CenterCrop,
    ColourJitter,
    FixedBox,
    HorizontalFlip,
    Pixels,
    RandomCrop,
    Resize,
    VideoTransform,
    published,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "actionmae" / "transforms.npz"
SIZE, LEVEL = 42, 0.0176  # one grey level after normalisation
# dataset, modality, recipe, colour
STREAMS = [
    ("ntu60", "rgb", "zoom", None), ("ntu60", "depth", "crop", None), ("ntu60", "ir", "crop", None),
    ("ntu120", "rgb", "zoom_train", None), ("ntu120", "depth", "crop", None), ("ntu120", "ir", "crop", None),
    ("nw_ucla", "rgb", "zoom", None), ("nw_ucla", "depth", "crop", "jet"),
    ("uwa3d", "rgb", "box", None), ("uwa3d", "depth", "stretch", None),
]  # fmt: skip
IDS = [f"{dataset}-{modality}" for dataset, modality, *_ in STREAMS]


class PillowResize(Pixels):
    """What the reference resized with."""

    def __init__(self, size):
        super().__init__()
        self.target = size

    def size(self, height, width):
        return self.target

    def replay(self, images, **params):
        resized = [Image.fromarray(image.numpy()).resize(self.target[::-1], Image.BILINEAR) for image in images]
        return torch.from_numpy(np.stack([np.asarray(image) for image in resized]))


def _stream(golden, dataset, modality, colour):
    """One clip of the golden frames, its mask and the parameters that the reference drew for it."""
    source = f"{'ntu' if dataset.startswith('ntu') else dataset}/src"
    frames = [golden[key] for key in sorted(golden.files) if key.startswith(f"{source}/{modality}/")]
    frames = [jet_index(frame) for frame in frames] if colour == "jet" else frames
    images = torch.from_numpy(np.stack(frames))
    images = images[None] if images.ndim == 4 else images[None, ..., None]
    count, drawn = images.shape[1], f"{dataset}/train/draws"
    order = ["rgb", "depth", "ir"].index(modality)  # drawn one modality after another
    own = slice(order * count, (order + 1) * count)
    params = {"HorizontalFlip0/flip": torch.from_numpy(golden[f"{drawn}/flip"][own])}
    if f"{drawn}/crop_ijhw" in golden.files:
        crop = torch.from_numpy(golden[f"{drawn}/crop_ijhw"][own])
        params |= {"RandomCrop0/top": crop[:, 0], "RandomCrop0/left": crop[:, 1]}
    if modality == "rgb":
        jitter = torch.from_numpy(golden[f"{drawn}/jitter_bcsh"])
        turn = torch.from_numpy(golden[f"{drawn}/jitter_order"]).argsort(1)  # when each of the four had its turn
        params |= {"ColourJitter0/brightness": jitter[:, 0], "ColourJitter0/hue": jitter[:, 3]}
        params |= {"ColourJitter0/hue_first": turn[:, 3] < turn[:, 0]}
    return images, torch.ones(1, count, dtype=torch.bool), params


@pytest.mark.parametrize("stream", STREAMS, ids=IDS)
@pytest.mark.parametrize("part", ["train", "val"])
def test_golden(stream, part):
    dataset, modality, recipe, colour = stream
    transform = published(recipe, SIZE, consistent=False, colour=colour)
    with np.load(GOLDEN) as golden:
        images, mask, params = _stream(golden, dataset, modality, colour)
        want = golden[f"{dataset}/{part}/out/{modality}"]
    got = transform.replay(images, mask, params if part == "train" else None)[0]
    off = np.abs(got.numpy() - want)
    steps = transform.train_steps if part == "train" else transform.test_steps
    if not any(isinstance(step, Resize) for step in steps):
        assert off.max() < 1e-6
    elif not any(isinstance(step, ColourJitter) for step in steps):
        assert off.max() < LEVEL and np.mean(off > 1e-6) < 0.1
    else:  # a level more or less may be a step of hue, which is up to six levels
        assert np.mean(off > LEVEL) < 0.012 and off.max() < 6 * LEVEL


@pytest.mark.parametrize("stream", [s for s in STREAMS if s[1] == "rgb"], ids=lambda s: s[0])
def test_golden_but_for_the_resizing(stream):
    dataset, modality, recipe, colour = stream
    transform = published(recipe, SIZE, consistent=False, colour=colour)
    for place, step in enumerate(transform.train_steps):
        if isinstance(step, Resize):
            transform.train_steps[place] = PillowResize((SIZE, SIZE))
    with np.load(GOLDEN) as golden:
        images, mask, params = _stream(golden, dataset, modality, colour)
        want = golden[f"{dataset}/train/out/{modality}"]
    got = transform.replay(images, mask, params)[0].numpy()
    assert np.mean(np.abs(got - want) > 1e-6) < 1e-4 and np.abs(got - want).max() < LEVEL


def test_resizing_is_pillows_but_for_rounding():
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype(np.uint8)
    for size, expected in ((45, (45, 60)), ((31, 100), (31, 100)), (96, (96, 128))):
        step = Resize(size)
        assert step.size(60, 80) == expected and step.size(80, 60) in {expected[::-1], expected}
        got = step.replay(torch.from_numpy(image)[None])[0].numpy().astype(int)
        want = np.asarray(Image.fromarray(image).resize(expected[::-1], Image.BILINEAR)).astype(int)
        assert np.abs(got - want).max() <= 2 and np.mean(got != want) < 0.3


def test_recipes_truncate():
    zoom, crop = published("zoom"), published("crop")
    assert [step.crop for step in zoom.train_steps if hasattr(step, "crop")] == [(224, 224), (179, 179)]
    assert [step.crop for step in crop.train_steps if hasattr(step, "crop")] == [(268, 268), (224, 224)]
    assert not any(isinstance(step, ColourJitter) for step in published("zoom", jitter=False).train_steps)


def _videos(clips=3, frames=4, height=20, width=24, channels=3, still=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (clips, 1 if still else frames, height, width, channels)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return images.expand(clips, frames, -1, -1, -1).contiguous(), torch.ones(clips, frames, dtype=torch.bool)


def _small(consistent=True, **options):
    train = [CenterCrop((18, 26)), RandomCrop(12), Resize((10, 10)), ColourJitter(), HorizontalFlip()]
    return VideoTransform(train, [CenterCrop(12)], consistent, **options)


def test_a_clip_draws_once_or_each_frame_its_own():
    images, mask = _videos(still=True)
    draws = Draws(0, 3, torch.tensor([5, 9, 2]))
    same = _small()(images, mask, draws)
    assert same.shape == (3, 4, 3, 10, 10) and same.dtype == torch.float32
    assert torch.equal(same, same[:, :1].expand_as(same))
    own = _small(consistent=False)(images, mask, draws)
    assert all(not torch.equal(own[:, 0], own[:, t]) for t in range(1, 4))
    assert not torch.equal(same[:, 0], _small()(images, mask, Draws(0, 4, draws.index))[:, 0])


@pytest.mark.parametrize("consistent", [True, False])
def test_draws_do_not_depend_on_who_is_in_the_batch(consistent):
    images, mask = _videos()
    draws = Draws(1, 0, torch.tensor([7, 1, 4]))
    rows = torch.tensor([2, 0])
    whole = _small(consistent)(images, mask, draws)
    assert torch.equal(_small(consistent)(images[rows], mask[rows], draws.rows(rows)), whole[rows])


def test_evaluation_draws_nothing_and_chunks_do_not_matter(monkeypatch):
    images, mask = _videos()
    assert torch.equal(_small()(images, mask), _small()(images, mask))
    draws = Draws(1, 0, torch.arange(3))
    whole = _small()(images, mask, draws)
    monkeypatch.setattr("skelact.transforms.image_steps._PIXELS", {"cpu": 250})
    assert torch.equal(_small()(images, mask, draws), whole)


def test_frames_behind_the_end_are_zero_and_touch_nothing():
    images, mask = _videos()
    mask[1, 2:] = False
    draws = Draws(0, 0, torch.arange(3))
    out = _small()(images, mask, draws)
    assert (out[1, 2:] == 0).all() and (out[mask] != 0).any(dim=(1, 2, 3)).all()
    images[1, 2:] = 77
    assert torch.equal(_small()(images, mask, draws), out)


def test_what_is_outside_is_black_and_not_the_first_colour():
    images = torch.zeros(1, 1, 4, 6, 1, dtype=torch.uint8)
    transform = VideoTransform([], [CenterCrop((8, 6)), CenterCrop((6, 4))], colour="jet", mean=(0,) * 3, std=(1,) * 3)
    out = transform(images, torch.ones(1, 1, dtype=torch.bool))[0, 0] * 255
    first = torch.from_numpy(jet_table()[0].astype(np.float32))[:, None, None]
    assert (out[:, [0, -1]] == 0).all() and torch.equal(out[:, 1:-1], first.expand(3, 4, 4))


def test_grey_is_repeated():
    images, mask = _videos(channels=1)
    draws = Draws(0, 0, torch.arange(3))
    out = VideoTransform([RandomCrop(8), ColourJitter()], [], mean=(0,) * 3, std=(1,) * 3)(images, mask, draws)
    assert out.shape[2] == 3 and torch.equal(out[:, :, 0], out[:, :, 1]) and torch.equal(out[:, :, 0], out[:, :, 2])


@given(
    st.integers(0, 6), st.integers(0, 6), st.booleans(), st.integers(3, 20), st.integers(3, 20), st.integers(0, 2**16)
)
def test_windows_at_once_are_windows_one_after_another(top, left, flip, height, width, seed):
    image = np.random.default_rng(seed).integers(1, 256, (11, 13, 3)).astype(np.uint8)
    steps = [CenterCrop((height + 6, width + 6)), RandomCrop((height, width)), HorizontalFlip(), FixedBox(1, 0, 2, 3)]
    transform = VideoTransform(steps, [], mean=(0,) * 3, std=(1,) * 3)
    params = {"RandomCrop0/top": torch.tensor([top]), "RandomCrop0/left": torch.tensor([left])}
    params["HorizontalFlip0/flip"] = torch.tensor([flip])
    got = transform.replay(torch.from_numpy(image)[None, None], torch.ones(1, 1, dtype=torch.bool), params)[0, 0]
    # torchvision's rule: pad, the odd pixel behind; then cut, half a pixel to the even side
    tall, wide = max(height + 6 - 11, 0), max(width + 6 - 13, 0)
    want = np.pad(image, ((tall // 2, tall - tall // 2), (wide // 2, wide - wide // 2), (0, 0)))
    begin, start = round((want.shape[0] - height - 6) / 2), round((want.shape[1] - width - 6) / 2)
    want = want[begin + top : begin + top + height, start + left : start + left + width]
    want = (want[:, ::-1] if flip else want)[1:3, :3]
    np.testing.assert_allclose(got.permute(1, 2, 0).numpy() * 255, want, atol=1e-3)


def test_crops_reach_every_place():
    images, _ = _videos(clips=400, frames=1, height=10, width=9)
    drawn = VideoTransform([RandomCrop(8)], []).draw(Draws(0, 0, torch.arange(400)), images)
    assert set(drawn["RandomCrop0/top"].tolist()) == {0, 1, 2} and set(drawn["RandomCrop0/left"].tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: published("zoomed"), "zoomed.*none of zoom"),
        (lambda: VideoTransform([], [], colour="hot"), "colour='hot'"),
        (lambda: CenterCrop((3, 0)), "at least one pixel"),
        (lambda: ColourJitter(hue=0.7), "hue=0.7"),
        (lambda: VideoTransform([], [])(_videos()[0].float(), _videos()[1]), "uint8"),
        (lambda: VideoTransform([], [], colour="jet")(*_videos()), "one channel"),
        (lambda: VideoTransform([], [RandomCrop(21)])(*_videos()), "larger than what it is cut of"),
        (lambda: published("box")(*_videos()), "does not fit frames of 20x24"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(SkelactError, match=message):
        make()
