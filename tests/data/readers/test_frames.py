from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from skelact.data.readers.base import DamagedClip, Item
from skelact.data.readers.frames import (
    IMAGES,
    load_matlab,
    numbered_files,
    read_image,
    read_video,
    resize,
    segment_centres,
    target_size,
)

from ..pictures import cut, depth, numbers, picture, write_folder, write_video

CODECS = {
    "clip.avi": ("mjpeg", {}),
    "inter.avi": ("mpeg4", {"bf": 0, "g": 12}),
    "reordered.avi": ("mpeg4", {"bf": 2, "g": 12}),
    "clip.mp4": ("libx264", {"bf": 0, "g": 8}),
    "reordered.mp4": ("libx264", {"bf": 2, "g": 8}),
    "clip.mkv": ("libx264", {"bf": 2, "g": 8}),
}


@given(st.integers(1, 500), st.integers(1, 64))
def test_segment_centres(total, keep):
    chosen = segment_centres(total, keep)
    assert len(chosen) == min(total, keep) and chosen[0] >= 0 and chosen[-1] < total
    assert (np.diff(chosen) >= 1).all()
    if keep < total:
        np.testing.assert_array_equal(chosen, np.floor((np.arange(keep) + 0.5) * total / keep))
    np.testing.assert_array_equal(segment_centres(total, None), np.arange(total))


def _item(path):
    return Item("clip", path)


def test_files_are_sorted_by_number_not_as_text(tmp_path):
    names = [f"output{n}.png" for n in (8, 9, 10, 11, 99, 100, 101)]
    write_folder(tmp_path, names)
    (tmp_path / "Thumbs.db").write_text("")
    assert [path.name for path in numbered_files(_item(tmp_path), tmp_path, IMAGES)] == names


def test_no_frame_and_a_frame_twice(tmp_path):
    with pytest.raises(DamagedClip, match="holds no frame"):
        numbered_files(_item(tmp_path), tmp_path, IMAGES)
    write_folder(tmp_path, ["7.png", "007.png"])
    with pytest.raises(DamagedClip, match="frame 7 is there twice"):
        numbered_files(_item(tmp_path), tmp_path, IMAGES)


@pytest.mark.parametrize("name", CODECS)
def test_wanted_frames_of_a_video(tmp_path, name):
    codec, options = CODECS[name]
    path = write_video(tmp_path / name, 24, codec, 48, 64, **options)
    assert numbers(np.stack(list(read_video(path, 4)))) == [3, 9, 15, 21]
    assert numbers(np.stack(list(read_video(path, None)))) == list(range(24))
    frame = next(read_video(path, 1, size=24, grey=True))
    assert frame.shape == (24, 32) and frame.dtype == np.uint8


def test_only_the_groups_that_are_wanted_are_decoded(tmp_path, monkeypatch):
    from skelact.data.readers import frames

    path = write_video(tmp_path / "clip.avi", 24)
    decoded = []
    real = frames._decoded

    def counting(*arguments):
        for frame in real(*arguments):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(frames, "_decoded", counting)
    assert len(list(read_video(path, 4))) == 4 == len(decoded)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.4, 0.95])
def test_a_video_cut_short_is_damage(tmp_path, name, share):
    codec, options = CODECS[name]
    path = cut(write_video(tmp_path / name, 24, codec, **options), share)
    with pytest.raises(DamagedClip, match=name):
        list(read_video(path, 4))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["clip.avi", "clip.mp4", "clip.mkv"]), st.data())
def test_mutated_videos_never_crash(tmp_path_factory, name, data):
    folder = tmp_path_factory.getbasetemp() / "mutated"
    path, broken = folder / name, folder / f"broken_{name}"
    if not path.exists():
        codec, options = CODECS[name]
        write_video(path, 12, codec, **options)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    broken.write_bytes(content)
    try:
        frames = list(read_video(broken, 4, size=(12, 16)))
    except DamagedClip as error:
        assert str(broken) in str(error)
    else:
        assert 1 <= len(frames) <= 4 and {frame.shape for frame in frames} == {(12, 16, 3)}


def test_a_text_file_is_no_video(tmp_path):
    (tmp_path / "clip.avi").write_text("hello")
    with pytest.raises(DamagedClip, match="cannot be decoded"):
        list(read_video(tmp_path / "clip.avi", 4))


def test_kinds_of_images(tmp_path):
    write_folder(tmp_path, ["1.png"])
    Image.fromarray(depth(3)).save(tmp_path / "2.png")
    Image.fromarray(picture(5)[..., 0]).save(tmp_path / "3.png")
    assert read_image(tmp_path / "1.png", "rgb").shape == (24, 32, 3)
    assert read_image(tmp_path / "1.png", "grey").shape == (24, 32)
    np.testing.assert_array_equal(read_image(tmp_path / "2.png", "depth"), depth(3))
    assert read_image(tmp_path / "3.png", "depth").dtype == np.uint8
    assert read_image(tmp_path / "3.png", "rgb").shape == (24, 32, 3)
    with pytest.raises(DamagedClip, match="colour=rgb"):
        read_image(tmp_path / "1.png", "depth")
    with pytest.raises(DamagedClip, match="colour=jet"):
        read_image(tmp_path / "2.png", "grey")


@pytest.mark.parametrize("name", ["1.png", "1.jpg"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_mutated_images_never_crash(tmp_path_factory, name, data):
    folder = tmp_path_factory.getbasetemp() / f"images_{name[2:]}"
    if not folder.exists():
        write_folder(folder, [name])
    content = bytearray((folder / name).read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    for _ in range(data.draw(st.integers(0, 4)) if content else 0):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / f"b{name}").write_bytes(content)
    try:
        image = read_image(folder / f"b{name}", "rgb")
    except DamagedClip as error:
        assert f"b{name}" in str(error)
    else:
        assert image.ndim == 3 and image.dtype == np.uint8


def test_a_picture_of_no_sensible_size(tmp_path, monkeypatch):
    monkeypatch.setattr("skelact.data.readers.frames.MAX_PIXELS", 100)
    write_folder(tmp_path, ["1.png"])
    with pytest.raises(DamagedClip, match="32 x 24 pixels"):
        read_image(tmp_path / "1.png", "rgb")
    with pytest.raises(DamagedClip, match="million pixels"):
        list(read_video(write_video(tmp_path / "clip.avi"), 4))


def test_sizes():
    assert target_size(1080, 1920, 270) == (270, 480)
    assert target_size(1920, 1080, 256) == (455, 256)
    assert target_size(100, 120, 240) == (100, 120)
    assert target_size(100, 120, [50, 50]) == (50, 50)
    assert target_size(100, 120, None) == (100, 120)
    values = set(np.unique(depth(0)).tolist())
    small = resize(np.minimum(depth(0) // 16, 255).astype(np.uint8), 12, nearest=True)
    assert small.shape == (12, 16) and {int(v) for v in np.unique(small)} <= {v // 16 for v in values}


def test_matlab_damage(tmp_path):
    path = tmp_path / "a.mat"
    path.write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    with pytest.raises(DamagedClip, match=r"a\.mat"):
        load_matlab(Item("a", path), "d_iner")
