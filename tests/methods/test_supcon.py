"""The embedding of one-shot recognition: the released network, what is trained and how, dropout at test, ranks."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from skelact.backbones.dstformer import DSTformer
from skelact.backbones.umurl import UmURLEncoder
from skelact.benchmarks.straightforward import straightforward
from skelact.clips import RaggedClips
from skelact.errors import SkelactError
from skelact.methods.supcon import SupCon
from skelact.objectives import supcon
from skelact.transforms.sampling import CenterCrop
from skelact.transforms.views import ViewMaker

GOLDEN = Path(__file__).parents[1] / "golden" / "maskclr" / "actionnet.npz"


def clips(count=8, classes=3):
    """Clips of constant poses, one pose a class, with noise."""
    generator = torch.Generator().manual_seed(1)
    poses = torch.randn(classes, 1, 1, 20, 3, generator=generator)
    frames = [poses[i % classes] + 0.1 * torch.randn(10 + i, 1, 20, 3, generator=generator) for i in range(count)]
    return RaggedClips.pack(frames, label=[5 * (i % classes) for i in range(count)])


def make(token=False, **options):
    torch.manual_seed(0)
    if token:
        sizes = {"width": 8, "token_features": 4, "depth": 1, "num_heads": 2, "max_frames": 8}
        backbone = DSTformer("kinect20", **sizes, dropout=0.1)
    else:
        backbone = UmURLEncoder("kinect20", 1, 8, streams=("joint", "motion"), width=16)
    options.setdefault("optimizer", partial(torch.optim.AdamW, lr=1e-2))
    views = ViewMaker(CenterCrop(8), views=None)
    return SupCon(backbone, "kinect20", CenterCrop(8), views, embedding=6, **options)


def test_embeddings_equal_the_released_ones():
    golden = {key: torch.from_numpy(value) for key, value in np.load(GOLDEN, allow_pickle=False).items()}
    state = {key.removeprefix("emb.sd."): value for key, value in golden.items() if key.startswith("emb.sd.")}
    backbone = DSTformer(
        "h36m17", width=16, token_features=12, depth=2, num_heads=4, mlp_ratio=2.0, max_frames=16, absent="count"
    )
    method = SupCon(backbone, "h36m17", CenterCrop(10), embedding=32, dropout=0.0, legacy_dropout=False).eval()
    own = backbone.state_dict()
    backbone.load_state_dict({key: state.get(f"backbone.{key}", value) for key, value in own.items()})
    method.head.load_state_dict({key: state[f"head.fc1.{key}"] for key in ("weight", "bias")})
    with torch.no_grad():
        found = method.embed_features(golden["x"])
    torch.testing.assert_close(found, golden["emb.embedding_eval"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("token", [False, True])
def test_clips_of_a_class_come_together(token):
    batch = clips(12)
    method = make(token)
    optimizer = method.configure_optimizers()
    losses = []
    for _ in range(30):
        loss = method.training_step(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    views, mask = method.eval().sample(batch)
    embeddings = method.embed_features(views, None, mask)
    cosine = embeddings @ embeddings.T
    same = batch.label[:, None] == batch.label
    assert cosine[same].mean() > cosine[~same].mean() + 0.5


def test_the_loss_is_supcon_of_all_views_with_labels_as_they_are():
    batch = clips()
    method = make(num_views=2, dropout=0.0, temperature=0.2).eval()
    views = method.views(batch)
    assert len(views) == method.num_views == 2
    embeddings = torch.stack([method.embed(view, mask=mask) for view, mask in views], 1)
    torch.testing.assert_close(method.training_step(batch), supcon(embeddings, batch.label, 0.2))
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(8, 2))


def test_equals_the_straightforward_form():
    method, batch = make(token=True, dropout=0.0, num_views=2).double(), clips()
    method.backbone.dropout.p = 0.0
    batch.label[2] = -1
    mask = torch.rand(8, 1, 8, 20, generator=torch.Generator().manual_seed(0)) > 0.2
    views = [(view.double(), mask) for view, _ in method.views(batch)]
    plain = straightforward(method).double().train()
    method.views = lambda _: views
    loss, expected = method.training_step(batch), plain.loss(batch, views)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    loss.backward()
    expected.backward()
    for ours, theirs in ((method.backbone, plain.backbone.net), (method.head, plain.head)):
        for name, parameter in theirs.named_parameters():
            torch.testing.assert_close(ours.get_parameter(name).grad, parameter.grad, rtol=1e-8, atol=1e-10, msg=name)


@pytest.mark.parametrize("exclude", [False, True])
def test_the_layer_has_a_rate_of_its_own(exclude):
    method = make(head_lr=0.5, exclude_from_decay=exclude)
    groups = method.configure_optimizers().param_groups
    head = set(method.head.parameters())
    for group in groups:
        assert group["lr"] == (0.5 if set(group["params"]) <= head else 1e-2)
        assert set(group["params"]) <= head or not head & set(group["params"])
    assert sum(len(group["params"]) for group in groups) == sum(1 for _ in method.parameters())


def test_nothing_waits_for_the_mask_token():
    method = make(token=True)
    method.training_step(clips()).backward()
    assert all((p.grad is None) == (not p.requires_grad) for p in method.parameters())


def test_dropout_at_test_is_off_unless_released():
    views, mask = make(token=True).sample(clips())
    quiet, loud = (make(token=True, dropout=0.0, preset=preset).eval() for preset in ("corrected", "as_released"))
    with torch.no_grad():
        assert torch.equal(quiet.embed_features(views, None, mask), quiet.embed_features(views, None, mask))
        first, second = loud.embed_features(views, None, mask), loud.embed_features(views, None, mask)
        assert not torch.allclose(first, second)
        assert not any(module.training for module in loud.modules())
        kept = make(token=True, dropout=0.0, preset="as_released", legacy_dropout=False).eval()
        torch.testing.assert_close(kept.embed_features(views, None, mask), loud.embed(views, None, mask))


def test_options_that_do_not_exist():
    for options, reason in (
        ({"preset": "released"}, "preset"), ({"num_views": 0}, "num_views=0"), ({"temperature": 0.0}, "temperature=0"),
    ):  # fmt: skip
        with pytest.raises(SkelactError, match=reason):
            make(**options)


def _on_rank(rank, counts):
    batch, method, logged = clips(sum(counts)), make(dropout=0.0), {}
    method.report = lambda values, batch_size: logged.update(values)
    rows = torch.arange(sum(counts)).split(counts)[rank]
    loss = method.training_step(batch.select(rows))
    loss.backward()
    grad = torch.cat([p.grad.flatten() for p in method.parameters() if p.grad is not None]) / len(counts)
    if len(counts) > 1:
        torch.distributed.all_reduce(grad)  # DDP's average
    return {**logged, "grad": grad}


@pytest.mark.ddp
@pytest.mark.parametrize("counts", [(4, 4), (2, 2, 2, 2)])
def test_processes_are_one(on_ranks, counts):
    expected = _on_rank(0, (8,))
    for ours in on_ranks(_on_rank, counts):
        for name, value in expected.items():
            torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-6, msg=name)
