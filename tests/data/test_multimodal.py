from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skelact.clips import Frames, ModalClips
from skelact.data.media import MediaStore
from skelact.data.modal_loading import Source
from skelact.data.multimodal import MultiModalDataModule
from skelact.data.store import Store, StoreError
from skelact.errors import SkelactError
from skelact.transforms.draws import Draws

from .modal_stores import (
    ALL,
    CLIPS,
    IMAGES,
    LACKS,
    assert_same,
    brightness,
    by_number,
    draws_of,
    epoch_of,
    length_of,
    modal,
    write_modal,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modal")
    write_modal(folder)
    return folder


@pytest.mark.parametrize("residence", ["disk", "ram", "device"])
def test_every_clip_comes_with_what_it_has(root, residence):
    module = modal(root, residence=residence)
    store = Store(root / "toy")
    seen = {}
    for part in ("train", "val", "test"):
        for batch in module.batches(part, device="cpu"):
            assert isinstance(batch, ModalClips) and batch.modalities == ALL
            assert batch.label.tolist() == [k % 3 for k in batch.index.tolist()]
            seen |= by_number(module, batch)
    assert sorted(seen) == list(range(CLIPS)) and module.store.names.tolist() == [f"c{k:02d}" for k in range(CLIPS)]
    for k, parts in seen.items():
        assert set(parts) == {name for name in ALL if k not in LACKS[name]}
        if "skeleton" in parts:
            row = store.names.tolist().index(f"c{k:02d}")
            np.testing.assert_array_equal(parts["skeleton"], store.clips([row], "ram").frames)
        for name in set(parts) & {"depth", "rgb"}:
            length, (values, mask) = length_of(name, k), parts[name]
            assert mask.all() and values.shape == (4, 3, 2, 2)
            want = [brightness(k, round(i * length / 4)) for i in range(4)]
            assert values[:, 0, 0, 0].tolist() == want


def test_short_videos_are_masked(root):
    module = modal(root, ["depth"], frames=7)
    batch = next(module.batches("train+val"))
    for number, parts in by_number(module, batch).items():
        values, mask = parts["depth"]
        length = length_of("depth", number)
        assert mask.tolist() == [i < length for i in range(7)]
        want = [brightness(number, i if length < 8 else round(i * 8 / 7)) for i in range(min(length, 7))]
        assert values[:, 0, 0, 0].tolist() == want + [0] * (7 - len(want))
    stored = module._sources["depth"].read(torch.arange(6), None)
    for part in (stored, batch.parts["depth"]):  # a device need not be asked how many there are
        assert part.to("meta").count == int(part.mask.sum()) < part.mask.numel()


def test_a_modality_that_no_clip_of_the_batch_has_is_no_part(root):
    module = modal(root, eval_batch_size=1)
    batches = {int(batch.index): batch for part in ("train+val", "test") for batch in module.batches(part)}
    assert set(batches[4].parts) == {"skeleton", "rgb"} and batches[4].available.tolist() == [
        [True, False, False, True]
    ]
    assert set(batches[15].parts) == {"depth", "rgb"}


@pytest.mark.parametrize("residence", ["disk", "ram"])
def test_absent_modalities_are_not_read(root, residence, monkeypatch):
    """Every gathered row and every decoded picture is counted, and belongs to a clip that has it."""
    taken, decoded, loaded = [], [], []
    take, decode, clips = Source.take, MediaStore.decode, Store.clips
    monkeypatch.setattr(
        Source, "take", lambda self, at: taken.append((self.store.modality, at.numel())) or take(self, at)
    )
    monkeypatch.setattr(MediaStore, "decode", lambda self, at, row: decoded.append(at) or decode(self, at, row))
    monkeypatch.setattr(
        Store, "clips", lambda self, rows, *a, **o: loaded.append(len(rows)) or clips(self, rows, *a, **o)
    )
    module = modal(root, residence=residence, withhold={"depth": 0.5}, eval_batch_size=3)
    module.setup()
    loaded.clear()
    batches = [batch for part in ("train+val", "test") for batch in module.batches(part, device="cpu")]
    having = torch.cat([batch.available for batch in batches]).sum(0).tolist()
    assert having[2] < CLIPS - len(LACKS["depth"])  # some were withheld
    assert sum(count for name, count in taken if name == "depth") == 4 * having[2]
    assert sum(count for name, count in taken if name == "inertial") == 2 * 8 * having[1]
    assert len(decoded) == 4 * having[3]
    if residence == "disk":
        assert sum(loaded) == having[0]
    counts = len(taken), len(decoded), len(loaded)
    one = modal(root, ["inertial"], residence=residence)
    list(one.batches("test"))
    assert len(decoded) == counts[1] and len(loaded) == counts[2]  # what is not chosen is not opened either
    assert {name for name, _ in taken[counts[0] :]} == {"inertial"}


@pytest.mark.parametrize("modalities", [("depth", "rgb"), ("inertial",), ("rgb",)])
def test_without_skeletons_their_store_is_not_needed(tmp_path, root, modalities):
    write_modal(tmp_path, skip=("skeleton",))
    module = modal(tmp_path, modalities, layout="kinect20")
    whole = modal(root, modalities)
    assert module.layout.name == "kinect20" and module.class_names == ["a", "b", "c"]
    for part in ("train", "val", "test"):
        assert module.clip_names(part) == whole.clip_names(part)
    with pytest.raises(SkelactError, match=r"data.modalities=\[skeleton,...\] adds them"):
        _ = module.num_channels
    with pytest.raises(StoreError, match="no store yet"):
        modal(tmp_path, ["skeleton", *modalities]).setup()


def test_training_draws_belong_to_seed_epoch_and_clip(root):
    one, _ = epoch_of(modal(root))
    other, _ = epoch_of(modal(root, batch_size=2, residence="disk"))
    both = one.keys() & other.keys()  # drop_last leaves different clips
    assert len(both) > 4
    assert_same({k: one[k] for k in both}, {k: other[k] for k in both})
    later, _ = epoch_of(modal(root), epoch=1)
    seed, _ = epoch_of(modal(root, seed=1))
    for changed in (later, seed):
        keys = [k for k in one.keys() & changed.keys() if "rgb" in one[k]]
        assert any(not torch.equal(one[k]["rgb"][0], changed[k]["rgb"][0]) for k in keys)


@pytest.mark.parametrize("residence", ["disk", "ram"])
def test_loader_workers_give_the_same(root, residence):
    alone, _ = epoch_of(modal(root, residence=residence), epoch=2)
    module = modal(root, residence=residence, num_workers=2)
    assert_same(alone, epoch_of(module, epoch=2)[0])
    want = list(modal(root, residence=residence).batches("test"))
    for a, b in zip(want, module.batches("test"), strict=True):
        assert_same(by_number(module, a), by_number(module, b))


def test_readers_can_be_sent(root):
    module = modal(root)
    next(module.batches("test"))
    reader = pickle.loads(pickle.dumps(module._reader(ALL)))
    rows = torch.tensor([0, 1, 15])
    for name, part in reader.read(rows, 3, ALL).items():
        want = module._reader(ALL).read(rows, 3, ALL)[name]
        if isinstance(part, Frames):
            torch.testing.assert_close(part.values, want.values)


def test_random_frames_are_those_that_are_drawn(root):
    """Both video modalities take the frames that the numbers of the clip say; uniform ones on request."""
    module = modal(root, ["depth", "rgb"])
    found, _ = epoch_of(module, epoch=5)
    for k, parts in found.items():
        unit = draws_of(module, k, 5).uniform("frames", 40)[0]
        for name, (values, _) in parts.items():
            length = length_of(name, k)
            want = sorted(unit[:length].argsort()[:4].tolist())
            shift = draws_of(module, k, 5).scope(name).uniform("shift")
            got = values[:, 0, 0, 0] - shift
            assert got.round().tolist() == [brightness(k, n) for n in want]
    uniform, _ = epoch_of(modal(root, ["depth"], temporal="uniform"))
    for k, parts in uniform.items():
        want = [brightness(k, round(i * length_of("depth", k) / 4)) for i in range(4)]
        assert parts["depth"][0][:, 0, 0, 0].floor().tolist() == want


def test_signals_are_resampled_and_standardised_by_training_clips(tmp_path):
    rows = write_modal(tmp_path)
    module = modal(tmp_path, ["inertial"], signal_frames=9)
    train = [k for k in rows if k % 4 in (0, 1)]
    stacked = np.concatenate([rows[k] for k in train]).astype(np.float64)
    found = {
        k: v
        for part in ("train+val", "test")
        for batch in module.batches(part)
        for k, v in by_number(module, batch).items()
    }
    assert set(train) < set(found)
    for k, parts in found.items():
        values, mask = parts["inertial"]
        place = np.linspace(0, len(rows[k]) - 1, 9)
        want = np.stack([np.interp(place, np.arange(len(rows[k])), rows[k][:, c]) for c in range(2)], 1)
        np.testing.assert_allclose(values, (want - stacked.mean(0)) / stacked.std(0), rtol=1e-4, atol=1e-4)
        assert mask.all()
    drawn, _ = epoch_of(module)
    ends = {k: parts["inertial"][0][[0, -1]] for k, parts in drawn.items()}
    assert all(not torch.equal(ends[k], found[k]["inertial"][0][[0, -1]]) for k in ends)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 99))
def test_a_random_part_of_a_signal_is_long_enough_and_inside(root, length, frames, epoch):
    source = modal(root, ["inertial"], signal_frames=frames)
    source.setup()
    signal = source._sources["inertial"]
    signal.spans = lambda rows: (torch.zeros_like(rows), torch.full_like(rows, length))
    signal._held = torch.arange(length, dtype=torch.float32)[:, None]  # the value is the place
    values = signal.read(torch.arange(3), Draws(0, epoch, torch.arange(3))).values[..., 0]
    assert values.min() >= 0 and values.max() <= length - 1 and (values.diff(dim=1) >= 0).all()
    if frames > 1:
        share = (values[:, -1] - values[:, 0]) / max(length - 1, 1)
        assert length == 1 or ((share >= 0.8 - 1e-5) & (share <= 1 + 1e-5)).all()


def test_withheld_clips_are_of_the_training_side_and_frozen(root):
    module = modal(root, withhold={"depth": 0.5})
    plain = modal(root)
    column = module.modalities.index("depth")
    side, test = plain.rows("train+val"), plain.rows("test")
    module.setup(), plain.setup()
    lost = np.flatnonzero((plain._at[:, column] >= 0) & (module._at[:, column] < 0))
    assert set(lost) <= set(side) and not set(lost) & set(test)
    assert len(lost) == int(0.5 * (plain._at[side, column] >= 0).sum() + 0.5)
    assert module.store.names[lost].tolist() == WITHHELD
    less = modal(root, withhold={"depth": 0.2})
    less.setup()
    assert {k for k in lost} >= set(np.flatnonzero((plain._at[:, column] >= 0) & (less._at[:, column] < 0)))
    assert module.fingerprint == plain.fingerprint  # the same stores, the same test clips


WITHHELD = ["c00", "c05", "c08", "c10", "c12"]


@given(st.lists(st.floats(0, 1), min_size=2, max_size=2))
@settings(max_examples=20, deadline=None)
def test_a_clip_keeps_a_modality_whatever_is_withheld(root, shares):
    module = modal(root, ["depth", "inertial"], withhold=dict(zip(["depth", "inertial"], shares, strict=True)))
    try:
        module.setup()
    except SkelactError as error:
        assert "no training clip has" in str(error) and max(shares) > 0.5
        return
    assert (module._at >= 0).any(axis=1).all()


def test_complete_clips_only(root):
    module = modal(root, complete=True)
    lacking = set().union(*LACKS.values())
    names = [name for part in ("train", "val", "test") for name in module.clip_names(part)]
    assert sorted(names) == [f"c{k:02d}" for k in range(CLIPS) if k not in lacking]
    assert all(batch.available.all() for batch in module.batches("test"))
    assert module.fingerprint != modal(root).fingerprint


def test_pictures_of_different_sizes(tmp_path):
    """Where sources crop by the person each clip has a size of its own."""
    write_modal(tmp_path, rgb_sizes=((6, 8), (4, 5), (9, 7)))
    module = modal(tmp_path, ["rgb"], temporal="uniform")
    found, _ = epoch_of(module)
    assert len(found) >= 8
    for k, parts in found.items():
        shift = draws_of(module, k, 0).scope("rgb").uniform("shift")
        want = [brightness(k, round(i * length_of("rgb", k) / 4)) + float(shift) for i in range(4)]
        torch.testing.assert_close(parts["rgb"][0][:, 0, 0, 0], torch.tensor(want))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"modalities": []}, "name at least one"),
        ({"modalities": ["rgb", "rgb"]}, "each once"),
        ({"modalities": ["thermal"]}, r"no store of thermal yet.*skelact prepare data=toy source=FOLDER modalities"),
        ({"temporal": "sometimes"}, "data.temporal='sometimes'"),
        ({"frames": 0}, "data.frames=0"),
        ({"withhold": {"ir": 0.1}}, "data.withhold.ir=0.1"),
        ({"withhold": {"rgb": 1.5}}, "data.withhold.rgb=1.5"),
        ({"num_classes": 60}, "set data.num_classes=3"),
        ({"split": "xset"}, "no split 'xset'"),
    ],
)
def test_what_does_not_fit_is_said(root, options, reason):
    options = {"split": "xsub", "modalities": ALL, "images": IMAGES, **options}
    with pytest.raises(SkelactError, match=reason):
        MultiModalDataModule(str(root / "toy"), **options).setup()


def test_what_decides_about_a_batch_is_told(root):
    """Kept features of clips belong to it."""
    plain = {"modalities": ["depth", "inertial"]}
    changes = [{}, {"frames": 5}, {"signal_frames": 9}, {"withhold": {"depth": 0.5}}, {"modalities": ["inertial"]}]
    told = [modal(root, **{**plain, **change}).reading for change in changes]
    assert len(set(told)) == len(told) and told[0] == modal(root, **plain, seed=5, batch_size=2).reading


def test_a_transform_that_is_missing_is_named(root):
    module = modal(root, ["depth"], images={})
    with pytest.raises(SkelactError, match=r"data\.images\.depth is missing"):
        next(module.batches("test"))


def test_stores_that_do_not_belong_together(tmp_path):
    write_modal(tmp_path)
    module = modal(tmp_path)
    from skelact.data.modalities import ModalTable, open_modalities

    stores = open_modalities(tmp_path / "toy", {"inertial": {}, "depth": {}})
    stores["depth"].columns["subject"] = stores["depth"].columns["subject"] + 1
    with pytest.raises(SkelactError, match="clip c00 has different values of subject"):
        ModalTable(stores)
    stores = open_modalities(tmp_path / "toy", {"depth": {}})
    del stores["depth"].columns["subject"]  # then clip 15, which has no skeleton, has no subject
    assert "subject" not in ModalTable(stores).columns and "subject" in module.store.columns
    stores["depth"].card["class_names"].append("d")
    with pytest.raises(SkelactError, match=r"have \[3, 4\] classes"):
        ModalTable(stores)


def test_variants_and_changes(root):
    module = modal(root, residence="ram")
    few = module.variant(fit="train+val", labels_per_class=1, batch_size=1)
    assert few.size("train+val") == 3 and len(epoch_of(few)[0]) == 3
    assert few._sources is module._sources
    doubled = list(module.batches("test", change=lambda clips: _twice(clips), device="cpu"))
    for a, b in zip(module.batches("test"), doubled, strict=True):
        a, b = by_number(module, a), by_number(module, b)
        for k in a:
            if "skeleton" in a[k]:
                torch.testing.assert_close(2 * a[k].pop("skeleton"), b[k].pop("skeleton"))
        assert_same(a, b)
    with pytest.raises(SkelactError, match="no skeletons to change"):
        next(modal(root, ["rgb"]).batches("test", change=_twice))


def _twice(clips):
    from dataclasses import replace

    return replace(clips, frames=2 * clips.frames)
