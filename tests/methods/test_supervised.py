"""Supervised classification: equal to the released classifiers, and what the modes promise."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from skelact.backbones.stgcn import STGCN
from skelact.backbones.umurl import UmURLEncoder
from skelact.benchmarks.straightforward import straightforward
from skelact.clips import RaggedClips
from skelact.errors import SkelactError
from skelact.methods.layers import ActionHead
from skelact.methods.supervised import Supervised
from skelact.transforms.sampling import CenterCrop
from skelact.transforms.views import ViewMaker

GOLDEN = Path(__file__).parents[1] / "golden" / "aimclr"
STREAMS = ("joint", "motion", "bone")


def names(family, stream):
    """Prefixes of a stream's trunk and head in the released state."""
    if family == "caca":
        return f"online_backbone_{stream}.", f"online_projector_{stream}."
    trunk = "encoder_q." if stream == "joint" else f"encoder_q_{stream}."
    return trunk, f"{trunk}fc."


@pytest.mark.parametrize(("family", "fusion"), [("caca", "sum"), ("crossclr", "mean")])
def test_logits_equal_the_released_ones(family, fusion):
    stored = np.load(GOLDEN / f"{family}_3views_lineval.npz")
    golden = {key: torch.from_numpy(stored[key]) for key in stored if not key.endswith("__names")}
    backbone = STGCN("ntu25", streams=STREAMS, hidden=2, num_features=12, strategy="uniform")
    method = Supervised(backbone, "ntu25", CenterCrop(16), 6, fusion=fusion, preset="as_released")
    for stream in STREAMS:
        trunk, head = names(family, stream)
        state = {k.removeprefix(f"state/{trunk}"): v for k, v in golden.items() if k.startswith(f"state/{trunk}")}
        backbone.load_trunk_state(stream, state)
        method.heads[stream].load_state_dict({k: golden[f"state/{head}{k}"] for k in ("weight", "bias")})
    method = method.double().eval()
    views = golden["x"].double().permute(0, 4, 2, 3, 1)
    with torch.no_grad():
        for stream in STREAMS:
            torch.testing.assert_close(method.logits(views, [stream]), golden[f"out_{stream}"], rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(method.logits(views), golden["out_all"], rtol=1e-8, atol=1e-8)
        pair = golden["out_joint"] + golden["out_bone"]
        found = method.logits(views, ["bone", "joint"])
        torch.testing.assert_close(found, pair if fusion == "sum" else pair / 2, rtol=1e-8, atol=1e-8)


def clips(count=9, classes=3):
    """Clips of constant poses, one pose a class, with noise."""
    generator = torch.Generator().manual_seed(1)
    poses = torch.randn(classes, 1, 1, 20, 3, generator=generator)
    frames = [poses[i % classes] + 0.1 * torch.randn(10 + i, 1, 20, 3, generator=generator) for i in range(count)]
    return RaggedClips.pack(frames, label=[i % classes for i in range(count)])


def make(kind="stgcn", streams=("joint", "motion"), dropout=0.0, **options):
    torch.manual_seed(0)
    if kind == "stgcn":
        backbone = STGCN("kinect20", 1, streams=streams, hidden=4, num_features=8, dropout=dropout)
    else:
        backbone = UmURLEncoder("kinect20", 1, 8, streams=streams, width=16)
    options.setdefault("optimizer", partial(torch.optim.Adam, lr=1e-2))
    return Supervised(backbone, "kinect20", CenterCrop(8), 3, ViewMaker(CenterCrop(8)), **options)


def step(method, batch, count=1):
    optimizer = method.configure_optimizers()
    method.on_train_start()
    losses = []
    for _ in range(count):
        loss = method.training_step(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("options", [{}, {"kind": "umurl"}, {"kind": "umurl", "streams": ("joint",)}])
def test_learns_separable_clips(options):
    method, batch = make(**options), clips()
    losses = step(method, batch, 12)
    assert losses[0] == pytest.approx(np.log(3), abs=0.1) and losses[-1] < 0.5
    with torch.no_grad():
        assert torch.equal(method.classify(batch).argmax(1), batch.label)
    assert all(p.grad is not None for p in method.parameters())  # or several processes would wait for it


def test_action_head_equals_the_released_one():
    stored = np.load(GOLDEN.parent / "maskclr" / "actionnet.npz")
    golden = {key: torch.from_numpy(stored[key]) for key in stored if key.startswith("cls.")}
    names = {"fc1": "fc1", "norm": "bn", "fc2": "fc2"}
    head = ActionHead(17 * 12, 40, 7)
    state = {
        key: golden[f"cls.sd.head.{names[key.partition('.')[0]]}.{key.partition('.')[2]}"] for key in head.state_dict()
    }
    head.load_state_dict(state)
    pooled = golden["cls.backbone_feat"].mean(2).flatten(2).mean(1)
    with torch.no_grad():
        head.eval()
        torch.testing.assert_close(head.hidden(pooled), golden["cls.hidden_eval"], rtol=2e-5, atol=2e-5)
        torch.testing.assert_close(head(pooled), golden["cls.logits_eval"], rtol=2e-5, atol=2e-5)
        head.train()
        torch.testing.assert_close(head.hidden(pooled, track=False), golden["cls.hidden_train_p0"], rtol=0, atol=1e-4)
        assert torch.equal(head.norm.running_mean, state["norm.running_mean"])
        torch.testing.assert_close(head(pooled), golden["cls.logits_train_p0"], rtol=0, atol=1e-4)
    for name in ("mean", "var"):
        after = getattr(head.norm, f"running_{name}")
        torch.testing.assert_close(after, golden[f"cls.bn_running_{name}_after"], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("kind", ["stgcn", "umurl"])
def test_action_heads_learn(kind):
    method, batch = make(kind, head="action", head_hidden=12), clips()
    assert step(method, batch, 12)[-1] < 0.5
    assert not any((head.fc2.bias == 0).all() for head in make(kind, head="action", head_hidden=12).heads.values())
    views, mask = method.eval().sample(batch)
    if kind == "stgcn":
        with pytest.raises(SkelactError, match="one action head"):
            method.hidden(views, mask)
        return
    with torch.no_grad():
        hidden = method.hidden(views, mask)
        torch.testing.assert_close(method.heads["all"].fc2(hidden), method.logits(views, mask=mask))
    assert hidden.shape == (9, 12) and (hidden >= 0).all()
    with pytest.raises(SkelactError, match="head=action"):
        make("umurl").hidden(views, mask)


def test_heads_have_a_learning_rate_of_their_own():
    method = make("umurl", head="action", head_hidden=12, head_lr=0.1)
    method.scheduler = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5)
    made = method.configure_optimizers()
    backbone, head = made["optimizer"].param_groups
    assert (backbone["lr"], head["lr"]) == (1e-2, 0.1)
    assert {id(p) for p in head["params"]} == {id(p) for p in method.heads.parameters()}
    made["optimizer"].step()
    made["lr_scheduler"]["scheduler"].step()
    assert (backbone["lr"], head["lr"]) == (5e-3, 0.05)
    method.exclude_from_decay = True
    groups = method.parameter_groups()
    assert [(g.get("lr"), g.get("weight_decay")) for g in groups] == [
        (None, None),
        (0.1, None),
        (None, 0.0),
        (0.1, 0.0),
    ]
    everything = [p for group in groups for p in group["params"]]
    assert len(everything) == len(set(everything)) == len(list(method.parameters()))


def test_eval_mode_freezes_statistics_and_dropout_but_trains_weights():
    batch = clips()
    for mode in ("train", "eval"):
        method = make(dropout=0.5, mode=mode)
        before = {name: value.clone() for name, value in method.state_dict().items()}
        method.on_train_start()
        same = torch.equal(*(method.training_step(batch) for _ in range(2)))
        step(method, batch)
        after = method.state_dict()
        moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
        trained = {name for name, _ in method.named_parameters() if mode == "eval" or name.endswith("weight")}
        assert trained <= moved  # the gradient of a bias before batch statistics is zero
        statistics = {name for name in moved if "running" in name or "num_batches" in name}
        assert (mode == "eval") == same == (not statistics)
    assert make(preset="as_released").mode == "eval" and make(preset="as_released", mode="train").mode == "train"
    assert make().mode == "train"


def test_only_the_head_is_trained_where_that_is_asked():
    method = make(dropout=0.5, head_only=True)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    step(method, clips())
    moved = {name for name, value in method.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {f"heads.{s}.{n}" for s in ("joint", "motion") for n in ("weight", "bias")}


@pytest.mark.parametrize(
    "options",
    [{}, {"head": "action", "head_hidden": 6, "fusion": "mean", "label_smoothing": 0.1}, {"preset": "as_released"}],
)
def test_equals_the_straightforward_form(options):
    """Of ST-GCN: loss, gradients, running statistics; unlabelled clips and unobserved joints are there."""
    method, batch = make(**options).double(), clips()
    batch.label[2] = -1
    plain = straightforward(method).train()
    mask = torch.rand(len(batch), 1, 8, 20, generator=torch.Generator().manual_seed(0)) > 0.2
    views = [(view.double(), mask) for view, _ in method.views(batch)]
    method.views = lambda _: views
    loss, expected = method.training_step(batch), plain.loss(batch, views)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    loss.backward()
    expected.backward()
    for number, stream in enumerate(method.streams):
        for name, parameter in plain.network.trunks[stream].named_parameters():
            ours = method.backbone.get_parameter(name).grad[number]
            torch.testing.assert_close(ours.view_as(parameter), parameter.grad, rtol=1e-8, atol=1e-10, msg=name)
        for name, value in plain.network.trunks[stream].state_dict().items():
            torch.testing.assert_close(method.backbone.trunk_state(stream)[name].view_as(value), value, msg=name)
    for ours, theirs in zip(method.heads.parameters(), plain.heads.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-10)


def test_unlabelled_clips_do_not_count():
    method, batch = make(mode="eval"), clips()
    few = batch.select(torch.arange(6))
    batch.label[6:] = -1
    torch.testing.assert_close(method.training_step(batch), method.training_step(few))
    method.on_validation_epoch_start()
    for rows in (torch.arange(0), torch.arange(4), torch.arange(4, 9)):
        method.validation_step(batch.select(rows))
        method._seen = method._seen if method._seen is None else method._seen.detach()
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(method.eval().classify(few), few.label)
    assert method._seen[0] / method._seen[2] == pytest.approx(loss.item(), rel=1e-5) and method._seen[2] == 6


def test_smoothing_dropout_and_head_options():
    batch = clips()
    smooth = make(label_smoothing=0.2).training_step(batch)
    assert smooth != make().training_step(batch)
    dropped = make(mode="train")
    dropped.dropout.p = 0.9
    assert dropped.training_step(batch) != dropped.training_step(batch)
    assert all((head.bias == 0).all() for head in make().heads.values())
    assert not any((head.bias == 0).all() for head in make(head_init=None).heads.values())


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"fusion": "max"}, "fusion"),
        ({"mode": "on"}, "mode"),
        ({"head": "deep"}, "head"),
        ({"preset": "x"}, "preset"),
        ({"streams": []}, "streams"),
    ],
)
def test_wrong_options_are_named(options, word):
    backbone = STGCN("kinect20", 1, hidden=4, num_features=8)
    with pytest.raises(SkelactError, match=word):
        Supervised(backbone, "kinect20", CenterCrop(8), 3, **options)
    with pytest.raises(SkelactError, match="num_classes"):
        Supervised(backbone, "kinect20", CenterCrop(8), 1)


def _unequal():
    """Eight clips, of whose halves one has two labels and the other four."""
    batch = clips(8)
    batch.label[:2] = -1
    return batch


def _gradients(rank, counts):
    """What a step logs, and averaged gradients, in double precision."""
    method, logged = make("umurl").double(), {}
    made = method.views
    method.views = lambda batch: [(view.double(), mask) for view, mask in made(batch)]
    method.report = lambda values, batch_size: logged.update(values)
    method.training_step(_unequal().select(torch.arange(8).split(counts)[rank])).backward()
    gradients = {name: p.grad.clone() for name, p in method.named_parameters()}
    for gradient in gradients.values():
        if len(counts) > 1:
            torch.distributed.all_reduce(gradient)
            gradient /= len(counts)
    return {"logged": logged, "gradients": gradients}


@pytest.mark.ddp
@pytest.mark.parametrize("counts", [(4, 4), (2, 2, 2, 2)])
def test_processes_equal_one_with_the_whole_batch(on_ranks, counts):
    expected = _gradients(0, (8,))
    for ours in on_ranks(_gradients, counts):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-11)


def _validation(rank, counts):
    """As the trainer validates, two clips a batch; what is logged at the end."""
    method, logged = make("umurl"), {}
    share = _unequal().select(torch.arange(8).split(counts)[rank])
    method._trainer, method.log_dict = object(), lambda values, sync_dist: logged.update(values)
    method.eval().on_validation_epoch_start()
    with torch.no_grad():
        for rows in torch.arange(len(share)).split(2):
            method.validation_step(share.select(rows))
        method.on_validation_epoch_end()
    return logged


@pytest.mark.ddp
@pytest.mark.parametrize("counts", [(5, 3), (5, 0, 2, 1)])
def test_validation_of_uneven_shares_counts_each_clip_once(on_ranks, counts):
    expected = _validation(0, (8,))
    assert set(expected) == {"val/loss", "val/top1"}
    for ours in on_ranks(_validation, counts):
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=0)
