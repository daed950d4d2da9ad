"""Methods of several modalities: clips that lack some, batches that mix them, ranks that have different ones."""

from dataclasses import replace
from functools import partial

import pytest
import pytorch_lightning as pl
import torch

from skelact.backbones.modality import SkeletonEncoder
from skelact.backbones.signal import SignalEncoder
from skelact.backbones.stgcn import STGCN
from skelact.backbones.umurl import UmURLEncoder
from skelact.backbones.video import ImageEncoder
from skelact.benchmarks.straightforward import straightforward
from skelact.callbacks.best_epoch import BestEpoch
from skelact.clips import Frames, ModalClips, RaggedClips
from skelact.errors import SkelactError
from skelact.methods.actionmae import ActionMAE
from skelact.methods.multimodal import MultiModal
from skelact.methods.schedules import staircase
from skelact.transforms.dropping import Bernoulli, Groups, UniformCount, subsets_of
from skelact.transforms.sampling import CenterCrop
from skelact.transforms.spatial import Shear
from skelact.transforms.views import ViewMaker

NAMES = ("rgb", "skeleton", "inertial")
close = torch.testing.assert_close
METHODS = {
    "sum": (MultiModal, {"fusion": "sum"}),
    "concat": (MultiModal, {"fusion": "concat", "drop": Bernoulli(0.5)}),
    "transformer": (MultiModal, {"fusion": "transformer", "drop": UniformCount()}),
    "late": (MultiModal, {"fusion": "late"}),
    "actionmae": (ActionMAE, {"fusion": "sum", "num_memory": 2}),
    "released": (ActionMAE, {"fusion": "sum", "num_memory": 1, "preset": "as_released"}),
}


def skeletons(width, backbone="stgcn", stream="joint"):
    if backbone == "stgcn":
        made = STGCN("kinect20", 1, streams=["joint"], hidden=2, num_features=6, dropout=0.0)
    else:
        made = UmURLEncoder("kinect20", 1, 6, streams=[stream], width=8)
    augment = ViewMaker(CenterCrop(6), Shear(0.3))
    return SkeletonEncoder(width, made, "kinect20", CenterCrop(6), augment, [stream])


ENCODERS = {
    "rgb": partial(ImageEncoder, name="test_resnet", tag=None, pretrained=False, depth=1, num_heads=2, drop_path=0.0),
    "skeleton": skeletons,
    "inertial": partial(SignalEncoder, channels=4, depth=1, num_heads=2, drop_path=0.0),
    **{name: partial(skeletons, stream=name) for name in ("joint", "bone", "motion")},
}


def make(name="actionmae", modalities=NAMES, encoders=ENCODERS, **options):
    torch.manual_seed(0)
    cls, own = METHODS[name]
    sizes = {"width": 8, "num_heads": 2, "mlp_ratio": 2.0, "fusion_depth": 1, "layout": "kinect20"}
    optimizer = partial(torch.optim.AdamW, lr=3e-3)
    method = cls(encoders, modalities, 3, **{**sizes, "optimizer": optimizer, **own, **options})
    for parameter in method.fusion.parameters():  # biases begin as zeros, which would hide where they go
        torch.nn.init.normal_(parameter, std=0.3)
    return method


def clips(available, seed=0, noise=0.1):
    """Clips of three classes, each modality telling them apart; `available` `(N, 3)` as in NAMES."""
    generator = torch.Generator().manual_seed(seed)
    random = partial(torch.randn, generator=generator)
    available = torch.as_tensor(available, dtype=torch.bool)
    count = len(available)
    label = torch.arange(count) % 3
    pose, colour, swing = random(3, 1, 1, 20, 3), random(3, 1, 3, 1, 1), random(3, 1, 4)
    images = colour[label] + noise * random(count, 3, 3, 32, 32)
    signal = swing[label] + noise * random(count, 9, 4)
    mask = torch.ones(count, 9, dtype=torch.bool)
    mask[:, 7:] = torch.arange(count)[:, None] % 2 == 0
    frames = [pose[c] + noise * random(8 + i % 3, 1, 20, 3) for i, c in enumerate(label)]
    whole = {
        "rgb": Frames(images, mask[:, 6:]),
        "skeleton": RaggedClips.pack(frames, label, torch.arange(count)),
        "inertial": Frames(signal, mask),
    }
    return pick(ModalClips(whole, torch.ones_like(available), NAMES, label, torch.arange(count)), available)


def pick(batch, available, rows=None):
    """Some clips of a complete batch, with what they shall have."""
    rows = torch.arange(len(batch)) if rows is None else rows
    parts = {}
    for column, (name, part) in enumerate(batch.parts.items()):
        own = rows[available[:, column]]
        if len(own):
            isframes = isinstance(part, Frames)
            parts[name] = Frames(part.values[own], part.mask[own]) if isframes else part.select(own)
    return ModalClips(parts, available, batch.modalities, batch.label[rows], batch.index[rows])


EVERY = torch.tensor([[i >> b & 1 for b in range(3)] for i in (7, 1, 6, 2, 5, 4, 3)], dtype=torch.bool)
COMPLETE = torch.ones(7, 3, dtype=torch.bool)


@pytest.mark.parametrize("name", METHODS)
def test_clips_are_classified_as_if_alone(name):
    method, batch = make(name).eval(), clips(EVERY)
    with torch.no_grad():
        tokens, present = method.tokens(batch)
        assert torch.equal(present, EVERY) and torch.equal(tokens.abs().sum(2) > 0, EVERY)
        logits = method.classify(batch)
        for row in range(len(batch)):
            alone = pick(clips(COMPLETE), EVERY[row : row + 1], torch.tensor([row]))
            close(method.classify(alone)[0], logits[row], rtol=1e-4, atol=1e-5)
            without = method.classify(clips(COMPLETE), [n for n, has in zip(NAMES, EVERY[row], strict=True) if has])
            close(without[row], logits[row], rtol=1e-4, atol=1e-5)
        features = method.features(batch, ["rgb"])
        assert features.shape == (7, method.num_features) and not features[:, 8:].any() and not features[1, 8:].any()


@pytest.mark.parametrize("name", METHODS)
def test_all_subsets_at_once(name):
    method, batch = make(name).eval(), clips(EVERY)
    subsets = subsets_of(NAMES)
    with torch.no_grad():
        means = method.token_means([batch, clips(EVERY, seed=1)])
        assert method.fills[0] == ("reconstruct" if isinstance(method, ActionMAE) else "drop")
        answers = {}
        for fill in method.fills:
            together = method.classify_subsets(batch, subsets, fill, means)
            assert together.shape == (7, 7, 3)
            for subset, logits in zip(subsets, together, strict=True):
                close(method.classify(batch, subset, fill, means), logits, rtol=1e-4, atol=1e-5)
                nothing = ~method.available(batch, subset).any(1)
                assert not logits[nothing].any() and logits[~nothing].any(1).all()
            answers[fill] = together
        whole = method.classify_subsets(clips(COMPLETE), [NAMES], "drop")
        for fill in set(method.fills) - {"late_average"}:  # nothing missing, nothing stood in for
            close(method.classify_subsets(clips(COMPLETE), [NAMES], fill, means), whole)
    different = list(answers.values())
    assert all(not torch.allclose(a, b) for i, a in enumerate(different) for b in different[:i])


def test_means_are_over_clips_that_have_the_modality():
    method = make().eval()
    first, second = clips(EVERY), clips(EVERY, seed=1)
    tokens = torch.cat([method.tokens(first)[0], method.tokens(second)[0]])
    present = torch.cat([EVERY, EVERY])
    found = method.token_means([first, second])
    close(found, torch.stack([tokens[present[:, m], m].mean(0) for m in range(3)]).detach())


@pytest.mark.parametrize("name", METHODS)
def test_what_is_not_observed_has_no_say(name):
    method, batch = make(name).train(), clips(COMPLETE)
    other = replace(batch, parts={**batch.parts, "rgb": clips(COMPLETE, seed=5).parts["rgb"]})
    method.eval()
    with torch.no_grad():
        for fill in method.fills:
            args = (("skeleton", "inertial"), fill, torch.zeros(3, 8))
            assert torch.equal(method.classify(batch, *args), method.classify(other, *args))
    tokens = torch.randn(7, 3, 8, requires_grad=True)
    kept = EVERY
    if isinstance(method, ActionMAE):
        logits = method.losses(tokens, COMPLETE, kept, None, batch.label)[2]
    else:
        logits = method.fusion(tokens, kept)
    grad = torch.autograd.grad(logits.square().sum(), tokens)[0]
    assert torch.equal(grad.abs().sum(2) > 0, kept) or name == "released"  # one full clip of memory tokens
    assert not grad[~kept].any()


def test_padded_frames_have_no_say():
    for preset, same in (("corrected", True), ("as_released", False)):
        method, batch = make("sum", preset=preset).eval(), clips(COMPLETE)
        part = batch.parts["rgb"]
        other = Frames(part.values.masked_fill(~part.mask[..., None, None, None], 9.0), part.mask)
        with torch.no_grad():
            found = [method.classify(x, ["rgb"]) for x in (batch, replace(batch, parts={**batch.parts, "rgb": other}))]
        assert torch.equal(*found) == same
    assert make("sum", preset="as_released", use_padding_mask=True).encoder("rgb").use_mask


def reached(method):
    return {name for name, p in method.named_parameters() if p.grad is not None and p.grad.any()}


@pytest.mark.parametrize("name", METHODS)
def test_a_modality_that_nobody_has(name):
    method = make(name).train()
    held = clips([[1, 0, 1], [0, 0, 1], [1, 0, 0], [1, 0, 1]])
    loss = method.training_step(held)
    loss.backward()
    assert torch.isfinite(loss) and all(p.grad is not None for p in method.parameters())
    names = reached(method)
    assert not any(n.startswith("encoders.skeleton") for n in names)
    assert any(n.startswith("encoders.rgb") for n in names) and any(n.startswith("encoders.inertial") for n in names)
    state = method.encoder("skeleton").state_dict()
    counts = [int(value.sum()) for key, value in state.items() if key.endswith("num_batches_tracked")]
    assert counts and not any(counts)  # no statistics of zeros


def test_reconstruction_is_of_what_clips_have():
    method = make("actionmae", lambda_cls=0.0)
    tokens, kept = torch.randn(7, 3, 8), torch.zeros(7, 3, dtype=torch.bool)
    kept[:, 2] = True
    present = kept.clone()
    labels = torch.zeros(7, dtype=torch.int64)
    assert method.losses(tokens, present, kept, None, labels)[0] == 0
    present[3, 0] = True
    rec, _, _ = method.losses(tokens, present, kept, None, labels)
    decoded = method.complete(tokens, kept)[1][3, 0]
    target = (tokens[3, 0] - tokens[3, 0].mean()) / (tokens[3, 0].var() + 1e-6).sqrt()
    close(rec, (decoded - target).square().mean())
    for detach in (False, True):
        method.detach_target = detach
        given = tokens.clone().requires_grad_()
        grad = torch.autograd.grad(method.losses(given, present, kept, None, labels)[0], given)[0]
        assert bool(grad[3, 0].any()) != detach and grad[3, 2].any()


def test_missing_ones_differ_by_their_embeddings():
    tokens, kept = torch.randn(2, 3, 8), torch.tensor([[True, False, False]] * 2)
    for embedded in (True, False):
        decoded = make(modality_embedding=embedded).eval().complete(tokens, kept)[1]
        assert torch.equal(decoded[:, 1], decoded[:, 2]) != embedded


def train(method, batch, steps):
    optimizer = method.configure_optimizers()
    method.train()
    for step in range(steps):
        loss = method.training_step(batch, step)
        optimizer.zero_grad()
        loss.backward()
        method.on_before_optimizer_step(optimizer)
        optimizer.step()
    return loss.item()


@pytest.mark.parametrize("name", ["late", "actionmae"])
def test_learns_from_incomplete_clips(name):
    encoders = {**ENCODERS, "skeleton": partial(skeletons, backbone="umurl")}
    fast = partial(torch.optim.AdamW, lr=2e-2)
    method = make(name, encoders=encoders, label_smoothing=0.0, optimizer=fast)
    train(method, clips(EVERY.repeat(2, 1)), 40)
    test, subsets = clips(torch.ones(12, 3), noise=0.12), subsets_of(NAMES)
    with torch.no_grad():
        logits = method.eval().classify_subsets(test, subsets)
    top1 = (logits.argmax(2) == test.label).float().mean(1)
    assert top1[-1] == 1 and (top1 >= 0.6).all() and top1.mean() > 0.85


def test_streams_of_one_skeleton():
    method = make(modalities=("joint", "bone", "motion"), drop=Groups(UniformCount()))
    assert method.groups == dict.fromkeys(("joint", "bone", "motion"), "skeleton")
    batch = clips(COMPLETE).parts["skeleton"]
    loss = method.training_step(batch)  # skeletons alone are clips of one modality
    loss.backward()
    method.eval()
    with torch.no_grad():
        assert method.available(batch, ["bone"]).tolist() == [[False, True, False]] * 7
        close(method.classify(batch, ["bone"]), method.classify(clips(COMPLETE), ["bone"]))
    views, mask = method.sample(clips(EVERY))
    assert views.shape == (7, 1, 6, 20, 3) and torch.equal(views.abs().sum((1, 2, 3, 4)) > 0, EVERY[:, 1])
    assert set(method.derive(views, ("joint", "bone"), mask)) == {"joint", "bone"}
    assert torch.equal(method.derive(views, mask=mask)["joint"], views)
    encoders = {name: partial(skeletons, backbone="umurl", stream=name) for name in ("joint", "bone")}
    assert make("sum", ("joint", "bone"), encoders).classify(batch).shape == (7, 3)


def double(x):
    if isinstance(x, ModalClips):
        return replace(x, parts={name: double(part) for name, part in x.parts.items()})
    return replace(x, frames=x.frames.double()) if isinstance(x, RaggedClips) else replace(x, values=x.values.double())


def in_double(views):
    def call(part, draws=None):
        made, mask = views(part, draws)
        return made.double(), mask

    return call


@pytest.mark.parametrize("available", [COMPLETE, EVERY & torch.tensor([True, True, False])])
@pytest.mark.parametrize("name", METHODS)
def test_equals_the_straightforward_form(name, available):
    encoders = {**ENCODERS, "skeleton": partial(skeletons, backbone="umurl")}
    method, batch = make(name, encoders=encoders).double().train(), double(clips(available))
    for encoder in method.encoders.children():
        if isinstance(encoder, SkeletonEncoder):
            encoder.views = in_double(encoder.views)
    plain = straightforward(method).double().train()
    loss, expected = method.training_step(batch), plain.loss(batch, None)
    close(loss, expected, rtol=1e-12, atol=0)
    loss.backward()
    expected.backward()
    theirs = dict(plain.named_parameters())
    assert theirs.keys() == dict(method.named_parameters()).keys()
    for key, parameter in method.named_parameters():
        grad = theirs[key].grad
        close(parameter.grad, torch.zeros_like(parameter) if grad is None else grad, rtol=1e-8, atol=1e-10, msg=key)
    for key, value in plain.named_buffers():
        close(method.state_dict()[key], value, rtol=1e-12, atol=1e-14)


RANKS = torch.tensor([[1, 0, 0], [1, 0, 0], [1, 0, 1], [0, 1, 1], [0, 1, 0], [0, 1, 1], [0, 1, 1]], dtype=torch.bool)


class Step(torch.nn.Module):
    """A training step as the forward pass that a trainer makes of it."""

    def __init__(self, method):
        super().__init__()
        self.method = method

    def forward(self, batch):
        return self.method.training_step(batch, 3)


def one_step(name, rows, modalities=NAMES, alpha=None):
    """Loss, gradients and statistics after a step with some of the clips."""
    torch.set_default_dtype(torch.float64)
    extra = {"ogm_alpha": alpha} if alpha else {}
    method = make(name, modalities, **extra)
    torch.set_default_dtype(torch.float32)
    method = method.double().train()
    for encoder in method.encoders.children():
        if isinstance(encoder, SkeletonEncoder):
            encoder.views = in_double(encoder.views)
    batch = pick(double(clips(COMPLETE)), RANKS[rows], rows)
    seen = {}
    method.report = lambda values, batch_size: seen.update(values)
    module = Step(method)
    if torch.distributed.is_initialized():  # it waits for every parameter's gradient
        module = torch.nn.parallel.DistributedDataParallel(module)
    module(batch).backward()
    grads = torch.cat([p.grad.flatten() for p in method.parameters()])
    buffers = torch.cat([b.double().flatten() for b in method.buffers()])
    return {"grads": grads, "buffers": buffers, "modulation": method._modulation, **seen}


CASES = [("sum", NAMES, 0.5), ("late", NAMES, None), ("actionmae", NAMES, None), ("released", NAMES, None)]
CASES += [("transformer", (*NAMES, "bone"), None)]


def each_case(rank, counts):
    rows = torch.arange(3) if rank == 0 else torch.arange(3, 7)
    return [one_step(name, rows, modalities, alpha) for name, modalities, alpha in CASES]


def test_two_ranks_with_different_modalities_are_one_process(on_ranks):
    ranks = on_ranks(each_case, [3, 4])
    for number, (name, modalities, alpha) in enumerate(CASES):
        alone = one_step(name, torch.arange(7), modalities, alpha)
        for rank in ranks:
            for key, expected in alone.items():
                close(rank[number][key], expected, rtol=1e-7, atol=1e-9, msg=f"{name} {key}")


def test_a_training(tmp_path):
    """With a trainer: epochs of the schedule counted in steps, and the best epoch by the mean over subsets."""
    scheduler = partial(staircase, warmup=1, every=1)
    method = make("actionmae", scheduler=scheduler, scheduler_interval="step")
    batches = [clips(EVERY, seed) for seed in range(4)]
    best = BestEpoch()
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", default_root_dir=tmp_path, logger=False, callbacks=[best],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    loader = partial(torch.utils.data.DataLoader, batch_size=None)
    trainer.fit(method, loader(batches), loader(batches[:2]))
    found = {key: float(value) for key, value in trainer.callback_metrics.items()}
    assert {"train/loss", "train/rec", "train/cls", "train/top1", "val/loss", "val/top1", "val/mean_top1"} <= set(found)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(3e-3 * 0.01)  # step 8 begins epoch 2 of 4 steps
    assert best.epoch is not None and best.top1 >= found["val/mean_top1"] and best.path(trainer).exists()
    method.eval()
    with torch.no_grad():
        logits = [method.classify_subsets(batch, subsets_of(NAMES)) for batch in batches[:2]]
    right = [((x.argmax(2) == b.label) & x.any(2)).float().mean(0) for x, b in zip(logits, batches[:2], strict=True)]
    assert found["val/mean_top1"] == pytest.approx(100 * float(torch.cat(right).mean()), abs=1e-3)
    with pytest.raises(SkelactError, match="steps_per_epoch"):
        make("actionmae", scheduler=scheduler).configure_optimizers()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sum", {"modalities": ("rgb", "flow")}, "flow"),
        ("sum", {"fusion": "gated"}, "fusion=gated"),
        ("sum", {"preset": "released"}, "preset"),
        ("transformer", {"ogm_alpha": 1.0}, "ogm_alpha"),
        ("actionmae", {"fusion": "late"}, "method=multimodal"),
        ("actionmae", {"drop": Bernoulli(0.3), "drop_count": "batch"}, "not both"),
        ("actionmae", {"eval_slots": "first"}, "eval_slots=first"),
    ],
)
def test_wrong_options(name, options, message):
    with pytest.raises(SkelactError, match=message):
        make(name, **options)


def test_wrong_questions():
    method, batch = make().eval(), clips(EVERY)
    with pytest.raises(SkelactError, match="no clip with inertial was seen"):
        method.classify(pick(clips(COMPLETE), torch.tensor([[True, True, False]] * 7)), fill="zero_input")
    with pytest.raises(SkelactError, match="fill=noise is none of this method's: reconstruct, drop"):
        method.classify(batch, fill="noise")
    with pytest.raises(SkelactError, match="token_means"):
        method.classify(batch, fill="mean_token")
    with pytest.raises(SkelactError, match="flow is none of rgb"):
        method.classify(batch, ["flow"])
    with pytest.raises(SkelactError, match="no skeleton among modalities rgb"):
        make(modalities=("rgb",)).sample(batch)


def test_sizes_are_the_released_ones():
    images = {name: partial(ImageEncoder, source=name, pretrained=False) for name in ("rgb", "depth")}
    with torch.device("meta"):
        for cls, fusion, expected in (
            (ActionMAE, "sum", 69_146_312),
            (ActionMAE, "transformer", 81_725_580),
            (MultiModal, "sum", 56_269_512),
        ):
            method = cls(images, ("rgb", "depth"), 60, fusion=fusion, preset="as_released")
            assert sum(p.numel() for p in method.parameters()) == expected - 2 * 513_000  # heads for ImageNet's classes


def test_encoders_begin_with_those_of_a_run(tmp_path):
    experts = make("late")
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter)
    (tmp_path / "checkpoints").mkdir()
    torch.save({"state_dict": experts.state_dict()}, tmp_path / "checkpoints" / "last.ckpt")
    method = make("actionmae", ("skeleton", "rgb"), pretrained=str(tmp_path))  # other names, in another order
    for name in method.streams:
        close(dict(method.encoder(name).state_dict()), dict(experts.encoder(name).state_dict()), rtol=0, atol=0)
    with pytest.raises(SkelactError, match=r"has no encoder of joint \(there are inertial, rgb, skeleton\)"):
        make("sum", ("joint",), pretrained=str(tmp_path))
    with pytest.raises(SkelactError, match=r"method\.pretrained=nowhere: there is no such run"):
        make("sum", ("inertial",), pretrained="nowhere")
    with pytest.raises(SkelactError, match="inertial: does not match SignalEncoder: misshaped"):
        make("sum", ("inertial",), width=16, pretrained=str(tmp_path))
