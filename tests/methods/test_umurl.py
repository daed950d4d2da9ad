"""What UmURL promises beyond the reference's numbers."""

import inspect
import io
from functools import partial
from itertools import combinations
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from skelact.backbones.umurl import UmURLEncoder
from skelact.benchmarks.straightforward.umurl import StraightforwardUmURL
from skelact.clips import RaggedClips
from skelact.errors import SkelactError
from skelact.methods.umurl import UmURL
from skelact.transforms.sampling import CenterCrop, CropResize
from skelact.transforms.views import ViewMaker

STREAMS = ("joint", "bone", "motion")
# Exact gradient zero: what the first batch normalisation removes, and a shift of all keys.
NO_SIGNAL = ("projector.0.bias", "projector.3.bias", "norm2.bias")


def make(streams=STREAMS, frames=8, persons=1, width=16, backbone=None, **options):
    torch.manual_seed(0)
    encoder = UmURLEncoder("kinect20", persons, frames, streams=streams, width=width, **(backbone or {}))
    options.setdefault("optimizer", partial(torch.optim.Adam, lr=1e-3))
    return UmURL(
        encoder,
        "kinect20",
        CenterCrop(frames),
        ViewMaker(CropResize(frames, ratio=(0.3, 1.0)), views=len(streams) + 1),
        streams,
        projector_width=24,
        **options,
    )


def clips(count=8, persons=1, masked=False):
    generator = torch.Generator().manual_seed(1)
    frames = [
        torch.randn(12 + 3 * i, persons, 20, 3, generator=generator).cumsum(0) / 4
        + torch.randn(20, 3, generator=generator)
        for i in range(count)
    ]
    mask = [torch.rand(f.shape[:3], generator=generator) > 0.2 for f in frames] if masked else None
    return RaggedClips.pack(frames, mask=mask)


@pytest.mark.parametrize("streams", [STREAMS, ("joint", "motion"), ("joint", "bone", "motion", "bone_motion")])
def test_overfits_eight_clips(streams):
    method, batch = make(streams), clips()
    optimizer = method.configure_optimizers()
    losses = []
    for _ in range(30):
        out = method.training_step(batch, 0)
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        losses.append(out["loss"].item())
    assert all(torch.isfinite(torch.tensor(losses)))
    assert losses[-1] < 0.8 * losses[0]
    assert not any(value.requires_grad for name, value in out.items() if name != "loss")
    assert {"intra", "inter", "variance", "covariance", "z_std"} < set(out)


def test_every_parameter_gets_a_gradient():
    method = make()
    method.training_step(clips(), 0)["loss"].backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        if not name.endswith(NO_SIGNAL):
            assert parameter.grad.abs().max() > 1e-7, name


def test_equals_the_straightforward_form():
    method = make(persons=2).double()
    plain = StraightforwardUmURL(method).double()
    views = [view.double() for view, _ in method.views(clips(persons=2))]
    loss = method.objective(*method.embed([(view, None) for view in views])).total
    expected = plain.loss(None, [(view, None) for view in views])
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    loss.backward()
    expected.backward()
    theirs = dict(plain.named_parameters())
    for name, parameter in method.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-8, atol=1e-10, msg=name)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(method.state_dict()[name], value, rtol=1e-12, atol=1e-14)


def test_features_of_every_subset_of_streams():
    method, batch = make().eval(), clips()
    seen = []
    with torch.no_grad():
        for size in (1, 2, 3):
            for subset in combinations(STREAMS, size):
                features = method.features(batch, streams=subset)
                assert features.shape == (8, method.num_features)
                torch.testing.assert_close(features, method.features(batch, streams=subset[::-1]))
                seen.append(features)
        assert torch.equal(seen[-1], method.features(batch))
    assert all(not torch.allclose(a, b) for a, b in combinations(seen, 2))


def test_only_what_is_asked_is_computed():
    method = make().eval()
    for stream in ("bone", "motion"):
        for parameter in method.backbone.embedding(stream).parameters():
            torch.nn.init.constant_(parameter, float("nan"))
    features = method.features(clips(), streams=["joint"])
    assert torch.isfinite(features).all()


@pytest.mark.parametrize("streams", [[], ["depth"], ["joint", "bone_motion"]])
def test_unknown_streams_are_refused(streams):
    with pytest.raises(ValueError, match="must be some of this method's: joint, bone, motion"):
        make().features(clips(), streams=streams)


@pytest.mark.parametrize("use_mask", [True, False])
def test_values_under_the_mask_are_never_read(use_mask):
    method, batch = make(use_mask=use_mask).eval(), clips(masked=True)
    with torch.no_grad():
        views, mask = method.sample(batch)
        other = torch.where(mask[..., None], views, torch.randn_like(views) * 100)
        assert torch.equal(method.encode(views, mask=mask), method.encode(other, mask=mask))


def test_rows_do_not_depend_on_the_batch():
    method, batch = make().eval(), clips()
    with torch.no_grad():
        together = method.features(batch)
        alone = torch.cat([method.features(batch.select(torch.tensor([i]))) for i in range(8)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_loss_is_float32_under_bfloat16():
    corrected, released = make(), make(preset="as_released")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = corrected.training_step(clips(), 0)
        theirs = released.training_step(clips(), 0)
    assert ours["loss"].dtype == ours["covariance"].dtype == torch.float32
    assert theirs["covariance"] != ours["covariance"]
    assert torch.isfinite(ours["loss"])


def test_presets_fill_only_what_is_not_given():
    assert make().loss_in_autocast is False and make().use_mask is True
    released = make(preset="as_released", use_mask=True)
    assert released.loss_in_autocast is True and released.use_mask is True
    with pytest.raises(ValueError, match="as_released, corrected"):
        make(preset="published")


def test_state_round_trip_and_meta_device():
    method = make()
    buffer = io.BytesIO()
    torch.save(method.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    other = make(seed=3)
    other.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(other.eval().features(clips()), method.eval().features(clips()))
    with torch.device("meta"):
        blank = make()
    assert {name: v.shape for name, v in blank.state_dict().items()} == {name: v.shape for name, v in state.items()}
    assert sum(p.numel() for p in blank.parameters()) == sum(p.numel() for p in method.parameters())


def test_published_size_has_the_published_parameter_count():
    with torch.device("meta"):
        encoder = UmURLEncoder("ntu25")
        method = UmURL(encoder, "ntu25", CenterCrop(64))
    assert sum(p.numel() for p in encoder.parameters()) == 22_067_200
    assert sum(p.numel() for p in method.parameters()) == 72_448_000


def test_weight_decay_can_leave_out_vectors_and_tables():
    method = make(exclude_from_decay=True, backbone={"joint_code": "learned"})
    decayed, plain = method.parameter_groups()
    names = {id(p): name for name, p in method.named_parameters()}
    left_out = {names[id(p)] for p in plain["params"]}
    assert plain["weight_decay"] == 0
    assert "backbone.ma_encoder.joint_code" in left_out
    assert all(
        name.endswith("bias") or "norm" in name or ".1." in name or ".4." in name or "code" in name for name in left_out
    )
    assert all(p.ndim == 2 for p in decayed["params"])
    assert len(left_out) + len(decayed["params"]) == len(names)


def _step(rank, counts):
    """What a step logs, averaged gradients, buffers and then features, in double precision."""
    method = make().double()
    batch = clips().select(torch.arange(8).split(counts)[rank])
    made = method.views
    method.views = lambda batch: [(view.double(), mask) for view, mask in made(batch)]
    out = method.training_step(batch)
    out["loss"].backward()
    gradients = {name: p.grad.clone() for name, p in method.named_parameters()}
    if len(counts) > 1:
        for gradient in gradients.values():
            torch.distributed.all_reduce(gradient)
            gradient /= len(counts)
    views, mask = method.eval().sample(clips())
    found = {"logged": {name: value.detach() for name, value in out.items()}, "gradients": gradients}
    return found | {"buffers": dict(method.named_buffers()), "features": method.encode(views.double(), mask=mask)}


@pytest.mark.ddp
@pytest.mark.parametrize("counts", [(4, 4), (2, 2, 2, 2)])
def test_processes_equal_one_with_the_whole_batch(on_ranks, counts):
    expected = _step(0, (8,))
    for ours in on_ranks(_step, counts):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-11)


def test_trains_under_lightning(tmp_path):
    method = make(
        scheduler=partial(torch.optim.lr_scheduler.MultiStepLR, milestones=[1], gamma=0.1),
        optimizer=partial(torch.optim.Adam, lr=1e-3, fused=True),
    )
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        precision="bf16-mixed",
    )
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    trainer.fit(method, DataLoader([clips(), clips()], batch_size=None), weights_only=True)
    assert trainer.global_step == 4
    assert {"train/loss", "train/z_std", "train/intra"} <= set(trainer.callback_metrics)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-4)
    assert all(not torch.equal(p, before[name]) for name, p in method.named_parameters() if p.ndim == 2)
    file = next(tmp_path.rglob("*.ckpt"))
    assert torch.load(file, weights_only=True)["state_dict"].keys() == method.state_dict().keys()


@pytest.mark.parametrize(("group", "target"), [("method", UmURL), ("backbone", UmURLEncoder)])
def test_every_option_is_in_the_configuration(group, target):
    path = Path(__file__).parents[2] / "conf" / group / "umurl.yaml"
    node = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    assert node.pop("_target_") == f"{target.__module__}.{target.__name__}"
    chosen = [key for entry in node.pop("defaults", []) if isinstance(entry, dict) for key in entry]  # group@option
    options = {*node, *(key.rpartition("@")[2] for key in chosen)}
    assert options == set(inspect.signature(target).parameters)


def test_a_random_sampler_is_refused_for_evaluation():
    encoder = UmURLEncoder("kinect20", 1, 8, width=16)
    with pytest.raises(SkelactError, match=r"method.sampler: CropResize is random.*sampling@method.sampler=whole"):
        UmURL(encoder, "kinect20", CropResize(8), projector_width=8)


def test_an_augmentation_for_another_number_of_views():
    sampler = CropResize(8)
    encoder = make().backbone
    for maker, advice in (
        (
            ViewMaker(sampler, views=2),
            r"augment\.views=2; leave it out \(augment\.views=null\) or set augment\.views=4",
        ),
        (ViewMaker(sampler, transforms=[None] * 3), r"augment\.views=3; it has transforms for so many; choose another"),
    ):
        with pytest.raises(SkelactError, match=f"needs 4 views of each clip, but {advice}"):
            UmURL(encoder, "kinect20", CenterCrop(8), maker, STREAMS)
    assert len(UmURL(encoder, "kinect20", CenterCrop(8), ViewMaker(sampler, views=None), STREAMS).views(clips())) == 4
