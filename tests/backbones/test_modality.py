"""Encoders of one modality: what is padded does not matter, no clips are clips, ranks are one batch."""

import warnings

import pytest
import torch

from skelact.backbones import video
from skelact.backbones.dstformer import DSTformer
from skelact.backbones.modality import JointConvEncoder, SkeletonEncoder
from skelact.backbones.signal import SignalEncoder
from skelact.backbones.stgcn import STGCN
from skelact.backbones.umurl import UmURLEncoder
from skelact.backbones.video import FrameEncoder, ImageEncoder
from skelact.clips import Frames, RaggedClips
from skelact.errors import SkelactError
from skelact.objectives import global_mean, world_size
from skelact.transforms.draws import Draws
from skelact.transforms.indexing import VideoFrames
from skelact.transforms.sampling import CenterCrop, CropResize
from skelact.transforms.spatial import RandomRotation
from skelact.transforms.views import ViewMaker

D = 12
TINY = {"name": "test_resnet", "tag": None, "pretrained": False}
LENGTHS = (9, 14, 4, 11, 3)
COUNTS = [(3, 2), (5, 0)]


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def images(values=None, full=False):
    mask = torch.ones(5, 3, dtype=torch.bool)
    if not full:
        mask[1, 1:] = mask[4, 2:] = False
    return Frames(noise(5, 3, 3, 32, 32) if values is None else values, mask)


def skeletons(mask=True):
    masks = [torch.ones(length, 2, 25, dtype=torch.bool) for length in LENGTHS]
    masks[2][:, 1] = masks[3][4:6] = False
    return RaggedClips.pack([noise(length, 2, 25, 3) for length in LENGTHS], mask=masks if mask else None)


def image_encoder(**options):
    torch.manual_seed(0)
    return ImageEncoder(D, num_heads=2, **{**TINY, "drop_path": 0.0, **options})


def joint_encoder(**options):
    torch.manual_seed(0)
    encoder = JointConvEncoder(D, "ntu25", VideoFrames(8), num_heads=2, drop_path=0.0, **options)
    for module in encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return encoder


def skeleton_encoder(name="stgcn", **options):
    torch.manual_seed(0)
    backbone = {
        "stgcn": lambda: STGCN("ntu25", streams=("joint", "bone"), hidden=4, num_features=8, dropout=0.0),
        "umurl": lambda: UmURLEncoder("ntu25", streams=("joint", "bone"), frames=8, width=16, depth=1, hidden=16),
        "dstformer": lambda: DSTformer("ntu25", width=16, token_features=4, depth=1, num_heads=2),
    }[name]()
    streams = ("joint",) if name == "dstformer" else ("joint", "bone")
    return SkeletonEncoder(D, backbone, "ntu25", CenterCrop(8), **{"streams": streams, **options})


def signal_encoder():
    torch.manual_seed(0)
    return SignalEncoder(D, 6, num_heads=2, drop_path=0.0)


ENCODERS = {
    "images": (image_encoder, images),
    "signal": (signal_encoder, lambda: images(noise(5, 3, 6))),
    "joints": (joint_encoder, skeletons),
    **{name: ((lambda name=name: skeleton_encoder(name)), skeletons) for name in ("stgcn", "umurl", "dstformer")},
}


def rows(part, chosen):
    """Some clips of a part."""
    if isinstance(part, RaggedClips):
        return part.select(torch.arange(5)[chosen])
    return Frames(part.values[chosen], part.mask[chosen])


@pytest.mark.parametrize("name", ENCODERS)
def test_tokens_belong_to_clips_and_a_part_may_have_none(name):
    make, clips = ENCODERS[name]
    encoder, part = make(), clips()
    encoder.train()
    encoder(part).sum().backward()
    assert all(p.grad is not None for p in encoder.parameters() if p.requires_grad)
    encoder.zero_grad()
    none = encoder(rows(part, slice(0, 0)))
    none.sum().backward()
    assert none.shape == (0, D) and all(p.grad is not None for p in encoder.parameters() if p.requires_grad)
    assert all(torch.isfinite(buffer).all() for buffer in encoder.buffers())
    encoder.eval()
    with torch.no_grad():
        tokens = encoder(part)
        assert tokens.shape == (5, D) and encoder(rows(part, slice(0, 0))).shape == (0, D)
        torch.testing.assert_close(tokens[3:], encoder(rows(part, slice(3, 5))), rtol=1e-4, atol=1e-5)
        blank = encoder.blank(part)
        assert len(blank) == 1 and encoder(blank).shape == (1, D)
        torch.testing.assert_close(encoder(encoder.blank(rows(part, slice(0, 0)))), encoder(blank))


@pytest.mark.parametrize("name", ["images", "signal"])
def test_padded_frames_change_nothing(name):
    make, clips = ENCODERS[name]
    part = clips()
    spoilt = part.values.clone()
    spoilt[~part.mask] = 1e3
    longer = Frames(torch.nn.functional.pad(spoilt, (0,) * (2 * spoilt.dim() - 4) + (0, 2), value=7.0),
                    torch.nn.functional.pad(part.mask, (0, 2)))  # fmt: skip
    found = []
    for frames in (part, Frames(spoilt, part.mask), longer):
        encoder = make().train()
        found.append((encoder(frames), dict(encoder.named_buffers())))
    for tokens, buffers in found[1:]:
        torch.testing.assert_close(tokens, found[0][0])
        torch.testing.assert_close(buffers, found[0][1])


def test_as_released_padded_frames_take_part():
    part = images()
    released = image_encoder(use_mask=False, position=False).eval()
    with torch.no_grad():
        masked = image_encoder(position=False).eval()(part)
        tokens = released(part)
    padded = ~part.mask.all(1)
    torch.testing.assert_close(tokens[~padded], masked[~padded])
    assert not torch.allclose(tokens[padded], masked[padded], atol=1e-3)
    with torch.no_grad():
        with_positions = image_encoder().eval()(part)
    assert not torch.allclose(with_positions, masked, atol=1e-3)


def test_chunks_and_cached_features_give_the_same_tokens():
    part, encoder = images(), image_encoder().eval()
    with torch.no_grad():
        tokens = encoder(part)
        encoder.frames.chunk = 2
        torch.testing.assert_close(encoder(part), tokens)
        features = encoder.frames(part.values.flatten(0, 1)).unflatten(0, (5, 3))
        torch.testing.assert_close(encoder(Frames(features, part.mask)), tokens)
    assert features.shape[2] == encoder.frames.num_features != D  # hence a projection
    with pytest.raises(SkelactError, match="7 numbers a frame"):
        encoder(Frames(features[..., :7], part.mask))


def test_a_frozen_network_is_left_alone():
    encoder = image_encoder(frozen=True).train()
    before = {key: value.clone() for key, value in encoder.frames.state_dict().items()}
    encoder(images()).sum().backward()
    assert not encoder.frames.net.training and all(p.grad is None for p in encoder.frames.parameters())
    assert all(p.grad is not None for p in encoder.temporal.parameters())
    torch.testing.assert_close(encoder.frames.state_dict(), before)


def test_training_views_are_those_of_the_augmentation():
    clips = skeletons()
    augment = ViewMaker(CropResize(8), RandomRotation())
    encoder, draws = skeleton_encoder(augment=augment).eval(), Draws(3, 1, clips.index)
    with torch.no_grad():
        views, mask = augment(clips, draws)[0]
        streams = encoder.derive(views, mask)
        torch.testing.assert_close(encoder(clips, draws), encoder.adapter(encoder.backbone(streams, mask)))
        assert not torch.allclose(encoder(clips, draws), encoder(clips), rtol=1e-2, atol=0)
        other = skeleton_encoder(augment=ViewMaker(CropResize(8), RandomRotation()), streams=("bone",))
        torch.testing.assert_close(other.views(clips, draws)[0], views)  # a stream of its own sees the same view
    unobserved = ~mask
    spoilt = views.clone()
    spoilt[unobserved] = 1e3
    torch.testing.assert_close(encoder.derive(spoilt, mask), streams)


def test_the_reference_encoder_reads_the_first_body_alone():
    clips, encoder = skeletons(mask=False), joint_encoder().eval()
    other = RaggedClips(clips.frames.clone(), clips.start, clips.length, clips.label, clips.index)
    other.frames[:, 1] = 5.0
    with torch.no_grad():
        torch.testing.assert_close(encoder(other), encoder(clips))
    with pytest.raises(SkelactError, match="more than 20 joints"):
        JointConvEncoder(D, "coco17", VideoFrames(8))


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: skeleton_encoder(streams=("motion",)), "motion"),
        (lambda: skeleton_encoder(streams=()), "some of the backbone's"),
        (lambda: signal_encoder()(images(noise(5, 3, 4))), "channels=6"),
        (lambda: signal_encoder()(skeletons()), "source=inertial"),
        (lambda: joint_encoder()(images()), "reads RaggedClips"),
        (lambda: FrameEncoder("resnet_of_nobody", tag=None, pretrained=False), "name=resnet_of_nobody"),
        (lambda: FrameEncoder("resnet18", tag="nope", pretrained=False), "tag=nope"),
        (lambda: FrameEncoder(**{**TINY, "pretrained": "perhaps"}), "pretrained=perhaps"),
    ],
)
def test_errors_say_what_to_change(build, message):
    with pytest.raises(SkelactError, match=message):
        build()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """An empty cache of weights, and a hub that refuses connections."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    video._unreachable.cache_clear()
    yield tmp_path
    video._unreachable.cache_clear()


def test_without_weights_it_starts_from_random_ones_and_says_so(hub):
    options = {"name": "test_resnet", "tag": "r160_in1k"}
    with pytest.warns(UserWarning, match=r"test_resnet\.r160_in1k cannot be had .*random weights"):
        FrameEncoder(**options, pretrained="auto")
    with pytest.raises(SkelactError, match="pretrained=false"):
        FrameEncoder(**options, pretrained=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FrameEncoder(**options, pretrained=False)


@pytest.mark.timeout(60)
def test_cached_weights_are_taken_without_asking_anybody(hub):
    import timm
    from safetensors.torch import save_file

    theirs = timm.create_model("test_resnet").eval()
    folder = hub / "models--timm--test_resnet.r160_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    save_file(theirs.state_dict(), folder / "snapshots" / "abc" / "model.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = FrameEncoder("test_resnet", "r160_in1k", pretrained=True).eval()
    x = noise(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs.forward_head(theirs.forward_features(x), pre_logits=True))


def share(rank, counts):
    """Each encoder on a share of the clips; gradients as DDP averages them."""
    found = {}
    for name in ("images", "joints", "stgcn"):
        make, clips = ENCODERS[name]
        encoder, part = make().double().train(), clips()
        mine = torch.arange(5).split(counts)[rank]
        part = rows(part, slice(mine[0], mine[-1] + 1) if len(mine) else slice(0, 0))
        if isinstance(part, Frames):
            part = Frames(part.values.double(), part.mask)
        elif len(mine):
            encoder.sampler.register_forward_hook(lambda _m, _i, out: (out[0].double(), out[1]))
        else:  # what stands in for a modality that the rank has not: see MultiModal.agree
            none = part.index
            part = RaggedClips(torch.zeros(0, *part.frames.shape[1:]).double(), none, none, none, none)
            encoder.sampler.register_forward_hook(lambda _m, _i, out: (out[0].double(), out[1]))
        tokens = encoder(part)
        target = noise(5, D).double()[mine]
        global_mean(((tokens - target) ** 2).sum(1)).backward()
        grads = {key: p.grad / world_size() for key, p in encoder.named_parameters()}
        for grad in grads.values() if world_size() > 1 else ():
            torch.distributed.all_reduce(grad)
        found[name] = {"tokens": tokens.detach(), "grads": grads, "buffers": dict(encoder.named_buffers())}
    return found


@pytest.mark.ddp
@pytest.mark.parametrize("counts", COUNTS)
def test_ranks_equal_one_process_with_the_whole_batch(on_ranks, counts):
    """Also where a rank has no clip of the modality."""
    whole, ranks = share(0, (5,)), on_ranks(share, counts)
    for name, single in whole.items():
        joined = torch.cat([rank[name]["tokens"] for rank in ranks])
        torch.testing.assert_close(joined, single["tokens"], rtol=1e-7, atol=1e-8)
        for rank in ranks:
            for kind in ("grads", "buffers"):
                torch.testing.assert_close(rank[name][kind], single[kind], rtol=1e-6, atol=1e-8)


def test_frozen_random_frame_encoders_are_alike_and_leave_the_generator_alone():
    torch.manual_seed(3)
    first, after = FrameEncoder("test_resnet", None, False, frozen=True), torch.rand(1)
    torch.manual_seed(3)
    assert torch.rand(1) == after
    torch.manual_seed(4)
    second, trained = (FrameEncoder("test_resnet", None, False, frozen=frozen) for frozen in (True, False))
    weights = [net.state_dict()[next(iter(net.state_dict()))] for net in (first, second, trained)]
    assert weights[0].equal(weights[1]) and not weights[0].equal(weights[2])
