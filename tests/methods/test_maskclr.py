"""MaskCLR beyond its goldens: stages, ranks, masks, absent people, switches."""

from functools import partial

import pytest
import torch

from skelact.backbones.dstformer import DSTformer
from skelact.backbones.plain_transformer import PlainTransformer
from skelact.backbones.umurl import UmURLEncoder
from skelact.benchmarks.straightforward import straightforward
from skelact.clips import RaggedClips
from skelact.errors import SkelactError
from skelact.methods.maskclr import PRESETS, MaskCLR
from skelact.methods.supervised import Supervised
from skelact.transforms.draws import Draws
from skelact.transforms.sampling import CenterCrop
from skelact.transforms.spatial import Shear
from skelact.transforms.views import ViewMaker

FRAMES = 4


def network(kind=DSTformer, **options):
    torch.manual_seed(0)
    backbone = kind("h36m17", width=8, token_features=4, depth=1, num_heads=2, max_frames=FRAMES, **options)
    with torch.no_grad():  # far enough from zero for attention to differ between joints
        for parameter in backbone.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return backbone


def make(cls=MaskCLR, kind=DSTformer, absent="exclude", pack="eval", unobserved="zero", **options):
    backbone = network(kind, absent=absent, pack=pack, unobserved=unobserved)
    views = ViewMaker(CenterCrop(FRAMES), Shear(0.5), views=None)
    options = {"optimizer": partial(torch.optim.AdamW, lr=1e-3), "head_hidden": 6, "head_lr": 1e-2} | options
    options |= {} if cls is Supervised else {"msk_path_start_epoch": options.get("msk_path_start_epoch", 0)}
    return cls(backbone, "h36m17", CenterCrop(FRAMES), 3, augment=views, **options)


def clips(count=8, seed=3):
    """Clips of which some have a second person; three classes, one clip without label."""
    generator = torch.Generator().manual_seed(seed)
    frames = [torch.randn(6 + i, 2, 17, 3, generator=generator) for i in range(count)]
    for i in range(0, count, 3):
        frames[i][:, 1] = 0
    masks = [(clip != 0).any(-1) for clip in frames]
    labels = [i % 3 for i in range(count)]
    labels[-1] = -1
    return RaggedClips.pack(frames, label=labels, mask=masks)


def doubled(method):
    """Samplers give single precision."""
    made = method.views
    method.views = lambda batch: [(view.double(), mask) for view, mask in made(batch)]
    return method.double()


def steps(method, batches):
    """Losses of some steps as a trainer takes them; gradients are averaged over ranks as DDP does."""
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    optimizer, losses = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.1), []
    method.report = lambda values, batch_size: losses.append(torch.stack([values[k].detach() for k in sorted(values)]))
    for batch in batches:
        loss = method.train().training_step(batch)
        optimizer.zero_grad()
        loss.backward()
        for p in method.parameters():
            if world > 1 and p.grad is not None:
                torch.distributed.all_reduce(p.grad)
                p.grad /= world
        method.on_before_optimizer_step(optimizer)
        optimizer.step()
    return losses


KINDS = {
    "corrected": {},
    "warm-up": {"msk_path_start_epoch": 1},
    "c2": {"preset": "as_released_c2", "absent": "count"},
    "c2, absent people left out": {"preset": "as_released_c2"},
    "c2, tcl": {"preset": "as_released_c2", "sample_loss": "targeted", "class_loss": "tcl"},
    "plain transformer, unobserved joints as mask tokens": {"kind": PlainTransformer, "unobserved": "token"},
    "c1": {"preset": "as_released_c1", "absent": "count"},
    "both views, packed": {"second_view": "both", "pack": "always", "bn_update_on_masked": False},
    "targeted, class means": {
        "masking": "targeted", "threshold": 0.6, "class_loss": "class_mean", "class_momentum": 0.9,
    },
}  # fmt: skip


def _train(rank, counts, kinds=tuple(KINDS)):
    found = {}
    for kind in kinds:
        method = doubled(make(**KINDS[kind]))
        share = clips().select(torch.arange(8).split(counts)[rank])
        found[kind] = {"logged": steps(method, [share] * 2), "state": method.state_dict()}
    return found


@pytest.mark.ddp
@pytest.mark.parametrize(
    ("counts", "kinds"),
    [((4, 4), tuple(KINDS)), ((2, 2, 2, 2), ("corrected", "c2, tcl", "targeted, class means"))],
)
def test_processes_are_one(on_ranks, counts, kinds):
    whole = _train(0, (8,), kinds)
    for ours in on_ranks(partial(_train, kinds=kinds), counts):
        for kind, expected in whole.items():
            own = ours[kind]
            torch.testing.assert_close(own["logged"], expected["logged"], rtol=1e-5, atol=1e-6, msg=kind)
            for name, value in expected["state"].items():
                torch.testing.assert_close(
                    own["state"][name],
                    value,
                    rtol=1e-7,
                    atol=1e-8,
                    msg=lambda m, k=kind, n=name: f"{k}, {n}: {m}",
                )


@pytest.mark.parametrize("kind", [DSTformer, PlainTransformer])
@pytest.mark.parametrize("pack", ["eval", "always"])
@pytest.mark.parametrize("options", [{}, {"msk_path_start_epoch": 1}, {"cls": Supervised, "head": "action"}])
def test_equals_the_straightforward_form(kind, pack, options):
    """Loss, gradients and running statistics; absent people, unobserved joints and an unlabelled clip are there."""
    method, batch = doubled(make(kind=kind, pack=pack, **options)), clips()
    batch.mask[::5, :, 3:7] = False
    views = method.views(batch)
    plain = straightforward(method).double().train()
    method.views = lambda _: views
    loss, expected = method.training_step(batch), plain.loss(batch, views)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    loss.backward()
    expected.backward()
    network = plain.network.encoder.net if options.get("cls") else plain.backbone.net
    for name, parameter in network.named_parameters():
        own = method.backbone.get_parameter(name)
        torch.testing.assert_close(own.grad, parameter.grad, rtol=1e-8, atol=1e-10, msg=name)
    head = plain.heads if options.get("cls") else torch.nn.Sequential(*plain.hidden, plain.classifier)
    for own, parameter in zip(method.heads.parameters(), head.parameters(), strict=True):
        torch.testing.assert_close(own.grad, parameter.grad, rtol=1e-8, atol=1e-10)
    for own, value in zip(method.heads.buffers(), head.buffers(), strict=True):
        torch.testing.assert_close(own, value)


@pytest.mark.parametrize("preset", ["corrected", "as_released_c1", "as_released_c2"])
def test_before_the_second_pathway_it_is_supervised(preset):
    method = make(preset=preset, msk_path_start_epoch=5)
    plain = make(Supervised, head="action")
    plain.load_state_dict({k: v for k, v in method.state_dict().items() if k != "memory"})
    batch = clips()
    torch.testing.assert_close(method.training_step(batch), plain.training_step(batch), rtol=0, atol=0)
    views, mask = method.eval().sample(batch)
    torch.testing.assert_close(method.logits(views, mask=mask), plain.eval().logits(views, mask=mask), rtol=0, atol=0)
    steps(method, [batch])
    token = method.backbone.mask_token
    assert token.grad is None  # or weight decay would shrink what is not used
    assert token.requires_grad == (preset != "as_released_c1") and not plain.backbone.mask_token.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_learns(kind):
    method = make(**KINDS[kind])
    before = {name: value.clone() for name, value in method.named_parameters()}
    logged = steps(method, [clips()] * 15)
    names = sorted(["loss", "top1"] if kind == "warm-up" else ["ce", "sc", "cc", "loss", "top1"])
    if kind not in ("warm-up", "c1"):
        names = sorted([*names, "masked", "mask_correlation"])
    values = [dict(zip(names, one.tolist(), strict=True)) for one in logged]
    key = "loss" if kind == "warm-up" else "ce"
    assert values[-1][key] < values[0][key] and torch.stack(logged).isfinite().all()
    moved = {name for name, value in method.named_parameters() if not torch.equal(value, before[name])}
    token = "unobserved" in kind or (method.token_idles and kind != "warm-up")
    assert ("backbone.mask_token" in moved) == token
    assert "heads.all.fc1.weight" in moved and any(name.endswith("_embed") for name in moved)


def test_absent_people_are_not_masked_and_do_not_matter():
    batch = clips()
    for options in ({}, {"preset": "as_released_c2"}, {"masking": "targeted"}):
        method = make(pack="never", **options).eval()
        (views, mask), draws = method.sample(batch), Draws(0, 0, batch.index)
        people = method.people(views, mask)
        chosen = method.mask(method.importance(views, mask), people, draws)
        away = ~mask.flatten(2).any(2)
        assert away.any() and not chosen[away].any() and chosen[~away].any()
        expected = method.pathways(views, mask, draws)
        noise = torch.where(mask[..., None], views, torch.randn_like(views))
        packed = make(pack="always", **options).eval()
        for other, clean in ((method, noise), (packed, views)):
            found = other.pathways(clean, mask, draws)
            for name in expected:
                torch.testing.assert_close(found[name], expected[name])


def test_masks_belong_to_the_clip():
    """Per sequence a clip loses the same joints in any batch, in the group of the second release it does not."""
    batch, rows = clips(), torch.tensor([5, 1, 2])
    for preset, alike in (("corrected", True), ("as_released_c2", False)):
        method = make(preset=preset).eval()
        found = []
        for some in (batch, batch.select(rows)):
            views, mask = method.sample(some)
            draws = Draws(0, 0, some.index)
            found.append(method.mask(method.importance(views, mask), method.people(views, mask), draws))
        assert torch.equal(found[0][rows], found[1]) == alike
        if not alike:  # each joint loses half of its tokens, whatever its importance
            there = FRAMES * (16 - 3)  # frames of all people but the three who are absent
            assert found[0].sum((0, 1, 2)).tolist() == [there - there // 2] * 17


def test_running_statistics_of_the_second_pathway():
    method = make(bn_update_on_masked=False)
    plain = make(Supervised, head="action")
    for one in (method, plain):
        one.train().training_step(clips())
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        own, other = (getattr(m.heads["all"].norm, name) for m in (method, plain))
        torch.testing.assert_close(own, other)
    twice = make()
    twice.train().training_step(clips())
    assert twice.head.norm.num_batches_tracked == 2
    assert not torch.equal(twice.head.norm.running_mean, method.head.norm.running_mean)


def test_the_noisy_view_is_the_second():
    method = make(preset="as_released_c1")
    assert method.num_views == 2 and len(method.views(clips())) == 2 and not method.masks
    assert make(preset="as_released_c1", second_view="masked").num_views == 1
    assert make(second_view="both").num_views == 2


def test_presets_fill_what_is_not_given():
    assert make(preset="as_released").switches == PRESETS["as_released_c2"] == make(preset="as_released_c2").switches
    method = make(preset="as_released_c2", group="frame", class_weight=2.0)
    assert method.switches == PRESETS["as_released_c2"] | {"group": "frame", "class_weight": 2.0}


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"preset": "released"}, "preset=released"),
        ({"masking": "random"}, "masking=random"),
        ({"group": "person"}, "group=person"),
        ({"second_view": "clean"}, "second_view=clean"),
        ({"class_loss": "infonce"}, "class_loss=infonce"),
        ({"ratio": 1.5}, "ratio=1.5"),
        ({"class_momentum": 0.9}, "class_mean"),
        ({"class_loss": "class_mean", "class_momentum": 0.9, "second_view": "both"}, "one second view"),
    ],
)
def test_wrong_options_are_named(options, word):
    with pytest.raises(SkelactError, match=word):
        make(**options)


def test_a_backbone_without_attention_is_refused():
    with pytest.raises(SkelactError, match="backbone=dstformer"):
        MaskCLR(UmURLEncoder("ntu25", 1, 8, streams=("joint",), width=16), "ntu25", CenterCrop(8), 3)
