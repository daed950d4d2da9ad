"""The contrastive family beyond its goldens: ranks, streams, stages, queues, switches."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skelact.backbones.stgcn import STGCN
from skelact.backbones.umurl import UmURLEncoder
from skelact.benchmarks.straightforward import straightforward
from skelact.clips import RaggedClips
from skelact.errors import SkelactError
from skelact.methods.caca import CACA, CMAL, SkeletonBYOL
from skelact.methods.moco import AimCLR, CrosSCLR, SkeletonCLR
from skelact.methods.momentum import KeyQueue, Teacher, follow
from skelact.transforms.sampling import CenterCrop
from skelact.transforms.spatial import Shear
from skelact.transforms.views import ViewMaker

THREE = ("joint", "motion", "bone")
KINDS = {
    "skeletonclr": (SkeletonCLR, {}),
    "crosclr": (CrosSCLR, {}),
    "crosclr crossing": (CrosSCLR, {"cross_epoch": 0}),
    "crosclr crossing, as released": (CrosSCLR, {"cross_epoch": 0, "preset": "as_released"}),
    "aimclr": (AimCLR, {}),
    "aimclr mining": (AimCLR, {"mining_epoch": 0, "topk": 2}),
    "skeletonbyol": (SkeletonBYOL, {}),
    "simsiam": (SkeletonBYOL, {"use_momentum": False}),
    "cmal": (CMAL, {}),
    "cmal with all terms": (CMAL, {"repel": "cross_view", "byol_weight": 0.3, "attract_stopgrad": True}),
    "caca": (CACA, {}),
    "caca crossing": (CACA, {"cross_epoch": 0, "normalize_positives": True, "ema_in_cross": True}),
}

FEW = ("crosclr crossing", "aimclr mining", "cmal with all terms", "caca crossing")


def make(kind, streams=THREE, dtype=torch.float64, persons=1, **options):
    """A tiny method without dropout, with weights far enough from zero for its features to differ."""
    torch.manual_seed(0)
    cls, settings = KINDS[kind]
    backbone = STGCN("ntu25", persons, streams=streams, hidden=2, num_features=8, dropout=0.0)
    sizes = {"embedding": 6, "momentum": 0.9}
    if issubclass(cls, SkeletonCLR):
        sizes |= {"queue_size": 12, "temperature": 0.2}
    else:
        sizes |= {"projector_hidden": 10, "predictor_hidden": 9}
    method = cls(
        backbone,
        "ntu25",
        CenterCrop(frames=8),
        augment=ViewMaker(CenterCrop(frames=8), Shear(0.5), views=None),
        streams=streams,
        **sizes | settings | options,
    )
    for parameter in method.parameters():
        if parameter.dim() > 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return doubled(method) if dtype == torch.float64 else method


def doubled(method):
    """Samplers give single precision."""
    views = method.views
    method.views = lambda batch: [(view.double(), mask) for view, mask in views(batch)]
    return method.double()


def clips(count=8, seed=3, persons=1):
    generator = torch.Generator().manual_seed(seed)
    return RaggedClips.pack(
        [torch.randn(10 + i, persons, 25, 3, generator=generator, dtype=torch.float64) for i in range(count)]
    )


def steps(method, batches):
    """What some optimiser steps log, as the trainer takes them; gradients are averaged over ranks as DDP does."""
    sgd = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.1, 0.9, weight_decay=1e-4)
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    losses = []
    for batch in batches:
        out = method.train().training_step(batch)
        sgd.zero_grad()
        out["loss"].backward()
        for group in sgd.param_groups:
            for p in group["params"]:
                if world > 1 and p.grad is not None:
                    torch.distributed.all_reduce(p.grad)
                    p.grad /= world
        sgd.step()
        if not isinstance(method, SkeletonCLR):
            method.follow()
        losses.append(torch.stack([value.detach().double() for value in out.values()]))
    return torch.stack(losses)


def _train(rank, counts, kinds=tuple(KINDS)):
    found = {}
    for kind in kinds:
        method = make(kind)
        share = clips().select(torch.arange(8).split(counts)[rank])
        found[kind] = {"losses": steps(method, [share] * 2), "state": method.state_dict()}
    return found


@pytest.mark.ddp
@pytest.mark.parametrize(
    ("counts", "kinds"), [((4, 4), tuple(KINDS)), pytest.param((2, 2, 2, 2), FEW, marks=pytest.mark.slow)]
)
def test_processes_are_one(on_ranks, counts, kinds):
    """The same losses, probes, weights, running statistics and queue, for every method and stage."""
    whole = _train(0, (8,), kinds)
    for ours in on_ranks(partial(_train, kinds=kinds), counts):
        for kind, expected in whole.items():
            own = ours[kind]
            torch.testing.assert_close(own["losses"], expected["losses"], rtol=1e-6, atol=1e-7, msg=kind)
            for name, value in expected["state"].items():
                torch.testing.assert_close(
                    own["state"][name],
                    value,
                    rtol=1e-7,
                    atol=1e-8,
                    msg=lambda m, k=kind, n=name: f"{k}, {n}: {m}",
                )


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_straightforward_form(kind):
    """Loss, weights after steps, running statistics, momentum networks and queues; two persons, not always observed."""
    method = make(kind, persons=2).train()
    plain = straightforward(method).train()
    trained = [[p for p in module.parameters() if p.requires_grad] for module in (method, plain)]
    optimisers = [torch.optim.SGD(parameters, 0.01, weight_decay=1e-4) for parameters in trained]
    drawn = torch.Generator().manual_seed(1)
    for number in range(2):
        batch = clips(seed=number, persons=2)
        views = [(view, torch.rand(view.shape[:-1], generator=drawn) > 0.2) for view, _ in method.views(batch)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(method, "views", lambda _, views=views: views)
            loss, expected = method.training_step(batch)["loss"], plain.loss(batch, views)
        torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
        for optimiser, value in zip(optimisers, (loss, expected), strict=True):
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
        method.stepped()
        plain.follow()
        state = straightforward(method).state_dict()
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(state[name], value, rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("kind", ["skeletonclr", "aimclr mining", "cmal"])
def test_streams_side_by_side_are_runs_of_their_own(kind):
    together = make(kind)
    losses = steps(together, [clips()] * 2)[:, 0]
    apart = torch.zeros_like(losses)
    for number, stream in enumerate(THREE):
        alone, fresh = make(kind, streams=(stream,)), make(kind)
        own = alone.state_dict()
        for name, value in fresh.state_dict().items():
            own[name].copy_(value if value.dim() == 0 else value[number : number + 1])
        apart += steps(alone, [clips()] * 2)[:, 0]
        now, then = together.state_dict(), alone.state_dict()
        for name, value in then.items():
            mine = now[name] if value.dim() == 0 else now[name][number : number + 1]
            torch.testing.assert_close(mine, value, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(losses, apart)


@pytest.mark.parametrize("kind", KINDS)
def test_every_trained_parameter_gets_a_gradient(kind):
    method = make(kind)
    method.train().training_step(clips())["loss"].backward()
    trained = {name for name, p in method.named_parameters() if p.requires_grad}
    assert trained and not any(name.startswith("teacher.") for name in trained)
    without = [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.lists(st.integers(1, 12), min_size=1, max_size=6))
def test_queue_holds_the_last_keys(size, batches):
    """Whatever the batches, the queue holds the last keys that were pushed, at places that go round."""
    queue, pushed = KeyQueue(2, 1, size), []
    start = queue.keys.clone()
    for count in batches:
        keys = torch.arange(len(pushed), len(pushed) + count).float()
        queue.push(torch.stack([keys, -keys])[..., None])
        pushed += keys.tolist()
    expected = start[0, 0].tolist()
    for place, key in enumerate(pushed):
        expected[place % size] = key
    assert queue.keys[0, 0].tolist() == expected and int(queue.pointer) == len(pushed) % size
    touched = min(len(pushed), size)
    assert torch.equal(queue.keys[1, 0, :touched], -queue.keys[0, 0, :touched]) or touched == 0


def test_teacher_starts_and_follows_as_said():
    online = {"backbone": STGCN("ntu25", hidden=2, num_features=4, streams=("joint", "bone"))}
    assert all(
        torch.equal(a, b) for a, b in zip(Teacher(online).parameters(), online["backbone"].parameters(), strict=True)
    )
    apart = Teacher(online, synchronised=False)
    weights = [p for p in apart.parameters() if p.dim() > 3 and p.shape[-1] == 1]
    assert weights and not any(p.requires_grad for p in apart.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(apart.parameters(), online["backbone"].parameters(), strict=True))
    before = [p.clone() for p in apart.parameters()]
    follow(apart["backbone"], online["backbone"], 0.75, rows=[1])
    for old, new, goal in zip(before, apart.parameters(), online["backbone"].parameters(), strict=True):
        assert torch.equal(new[0], old[0])
        torch.testing.assert_close(new[1], 0.75 * old[1] + 0.25 * goal[1])


@pytest.mark.parametrize(
    ("kind", "moved"),
    [("crosclr crossing, as released", ["motion"]), ("crosclr crossing", list(THREE)), ("caca", list(THREE))],
)
def test_which_momentum_trunks_move(kind, moved):
    method = make(kind)
    before = [p.clone() for p in method.teacher["backbone"].parameters()]
    method.follow()
    for number, stream in enumerate(THREE):
        changed = any(
            not torch.equal(a[number], b[number])
            for a, b in zip(before, method.teacher["backbone"].parameters(), strict=True)
        )
        assert changed == (stream in moved), stream


def test_targets_stand_still_in_the_second_stage():
    assert not make("caca", cross_epoch=0).follows and make("caca").follows and make("caca crossing").follows


def test_presets_set_the_named_switches():
    released, ours = make("crosclr", preset="as_released"), make("crosclr")
    assert (released.head.tied, released.cross_key_update, released.use_mask) == (True, "motion", False)
    assert (ours.head.tied, ours.cross_key_update, ours.use_mask) == (False, "all", True)
    option = make("crosclr", preset="as_released", tied_heads=False, cross_key_update="all")
    assert (option.head.tied, option.cross_key_update) == (False, "all")
    first = make("aimclr", attention_drop="first_release").embed_extreme(
        torch.randn(3, 1, 8, 25, 3, dtype=torch.float64)
    )
    assert first[0] is first[1]


def test_embedding_and_encoding_of_some_streams():
    method = make("caca").eval()
    views = torch.randn(3, 1, 8, 25, 3, dtype=torch.float64)
    assert method.encode(views).shape == (3, 24) and method.embed_features(views).shape == (3, 6)
    alone = method.encode(views, ["motion"])
    assert torch.equal(alone[:, 8:16], method.encode(views)[:, 8:16]) and not alone[:, :8].any()
    each = torch.stack([method.embed_features(views, [s]) for s in THREE])
    torch.testing.assert_close(each.mean(0), method.embed_features(views))


def test_any_encoder_can_be_trained():
    torch.manual_seed(0)
    encoder = UmURLEncoder("ntu25", persons=1, frames=8, channels=3, streams=THREE, width=8)
    augment = ViewMaker(CenterCrop(frames=8), Shear(0.5), views=None)
    method = CACA(
        encoder, "ntu25", CenterCrop(frames=8), augment=augment, embedding=6, projector_hidden=8, predictor_hidden=8
    )
    losses = steps(doubled(method), [clips()] * 3)
    assert losses.isfinite().all() and method.encode(torch.randn(2, 1, 8, 25, 3).double()).shape == (2, 16)
    with pytest.raises(SkelactError, match="ST-GCN"):
        AimCLR(encoder, "ntu25", CenterCrop(frames=8), augment=augment, streams=THREE)


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("crosclr", {"streams": ("joint",)}, "two or more"),
        ("crosclr", {"streams": ("joint", "bone"), "cross_key_update": "motion"}, "motion"),
        ("caca", {"vote": 4}, "vote"),
        ("caca", {"cscl_similarity": "cosine"}, "cscl_similarity"),
        ("cmal", {"repel": "all"}, "repel"),
        ("aimclr", {"attention_drop": "off"}, "attention_drop"),
        ("skeletonclr", {"preset": "released"}, "preset"),
    ],
)
def test_wrong_options_are_named(kind, options, words):
    with pytest.raises(SkelactError, match=words):
        make(kind, **options)


def test_trunks_must_be_those_of_the_streams():
    backbone = STGCN("ntu25", persons=1, streams=("joint", "bone"), hidden=2, num_features=8)
    with pytest.raises(SkelactError, match="in the same order"):
        SkeletonCLR(backbone, "ntu25", CenterCrop(frames=8), streams=("bone", "joint"))


def test_cmal_is_consistency_and_self_distillation():
    """-D(p, t) / 2 = D(-p, t) / 2 - 2, so the published loss equals attraction plus predicting the negated target."""
    method = make("cmal")
    p, t = ([torch.randn(3, 5, 6, dtype=torch.float64) for _ in range(2)] for _ in range(2))
    distance = lambda a, b: (2 - 2 * torch.cosine_similarity(a, b, dim=-1)).mean(1)  # noqa: E731
    expected = distance(*p) + (distance(-p[0], t[0]) + distance(-p[1], t[1])) / 2 - 4
    torch.testing.assert_close(method.cmal(p, p, t), expected)
