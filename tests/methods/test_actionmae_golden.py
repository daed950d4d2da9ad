"""ActionMAE and its baselines equal the released code: slot defects, training, gradient modulation, schedule."""

from itertools import combinations

import numpy as np
import pytest
import torch

from skelact.methods.actionmae import ActionMAE
from skelact.methods.modulation import coefficients
from skelact.methods.multimodal import MultiModal
from skelact.methods.schedules import staircase
from skelact.objectives.actionmae import reconstruction_loss
from skelact.transforms.dropping import UniformCount, subsets_of
from tests.methods.golden_actionmae import GOLDEN, NAMES, batch_of, load, load_released, make, renamed

close = torch.testing.assert_close
KEYS = {"".join(name[0] for name in subset): subset for subset in subsets_of(NAMES)}
RELEASED = {"preset": "as_released", "fusion": "sum", "num_memory": 1}


def released(**options):
    return load_released(make(ActionMAE, **{**RELEASED, **options}), load("actionmae_sum_m1"), "sd/")


def mixed(logits):
    """Clip i from subset i: what a batch that mixes subsets must give."""
    return torch.stack([logits[i % len(logits), i] for i in range(logits.shape[1])])


def test_every_subset_as_released():
    golden, method = load("actionmae_sum_m1"), released()
    batch = batch_of(golden)
    with torch.no_grad():
        tokens, present = method.tokens(batch)
        close(tokens, golden["tokens"], atol=1e-5, rtol=1e-5)
        assert present.all()
        logits = method.classify_subsets(batch, list(KEYS.values()))
        for key, found in zip(KEYS, logits, strict=True):
            close(found, golden[f"eval/{key}/logits"], atol=1e-5, rtol=1e-5)
            kept = torch.tensor([[name in KEYS[key] for name in NAMES]] * len(batch))
            loss = method.classification_loss(found, batch.label)
            close(loss, golden[f"eval/{key}/loss_cls"], atol=1e-5, rtol=1e-5)
            decoded = method.complete(tokens, kept, slots="packed")[1]
            if key != "rdi":
                close(decoded, golden[f"eval/{key}/recon"], atol=1e-5, rtol=1e-5)
            close(reconstruction_loss(decoded, tokens, ~kept), golden[f"eval/{key}/loss_rec"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("mode", "fusion_input"), [("paper", "bypass"), ("slotfix", "decoded")])
def test_every_subset_corrected(mode, fusion_input):
    golden = load("actionmae_sum_m1")
    method = released(
        preset="corrected", position=False, use_padding_mask=False, modality_embedding=False, fusion_input=fusion_input
    )
    batch = batch_of(golden)
    expected = torch.stack([golden[f"eval/{key}/derived_{mode}/logits"] for key in KEYS])
    with torch.no_grad():
        close(method.classify_subsets(batch, list(KEYS.values())), expected, atol=1e-5, rtol=1e-5)
        tokens, _ = method.tokens(batch)
        kept = torch.tensor([[name in list(KEYS.values())[i] for name in NAMES] for i in range(len(batch))])
        close(method.predict(tokens, kept, "reconstruct", tokens[0]), mixed(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("memory", [1, 4])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_training_as_released(memory, count):
    golden = load("actionmae_train_masking")
    case = {k.split("/", 2)[2]: v for k, v in golden.items() if k.startswith(f"mem{memory}/keep{count}/")}
    method = make(ActionMAE, **{**RELEASED, "num_memory": memory})
    weights = load("actionmae_sum_m1")
    if memory == 4:
        weights["sd/mem_token"] = golden["mem4/sd/mem_token"]
    load_released(method, weights, "sd/").train()
    present = torch.ones(4, 3, dtype=torch.bool)
    kept = UniformCount().replay(present, NAMES, {}, noise=case["noise"], count=case["len_keep"].expand(4))
    close((~kept).float(), case["removed_mask"], atol=0, rtol=0)
    order = case["noise"].argsort(1)
    rec, cls, logits = method.losses(golden["tokens"], present, kept, order, golden["targets"])
    for found, name in ((rec, "loss_rec"), (cls, "loss_cls"), (logits, "logits")):
        close(found.detach(), case[name], atol=1e-5, rtol=1e-5)
    fixed = make(ActionMAE, **{**RELEASED, "num_memory": memory, "full_path": "tokens"})
    load_released(fixed, weights, "sd/")
    if count == 3:
        logits = fixed.losses(golden["tokens"], present, kept, order, golden["targets"])[2]
        close(logits.detach(), case["derived_slotfix/logits"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("zero_fill", [False, True])
def test_three_training_steps(zero_fill):
    """Weights that a step does not need have gradients of zero here, as with the PyTorch that was released with it."""
    golden = load("train_step")
    method, batch = released().train(), batch_of(golden)
    optimizer = torch.optim.AdamW(method.parameters(), float(golden["lr"]), weight_decay=float(golden["weight_decay"]))
    present = torch.ones(3, 3, dtype=torch.bool)
    named, solid = dict(method.named_parameters()), {}
    for step in range(3):
        case = {k.partition("/")[2]: v for k, v in golden.items() if k.startswith(f"step{step}/")}
        kept = UniformCount().replay(present, NAMES, {}, noise=case["noise"], count=case["len_keep"].expand(3))
        tokens, _ = method.tokens(batch)
        rec, cls, logits = method.losses(tokens, present, kept, case["noise"].argsort(1), batch.label)
        for found, name in ((rec, "loss_rec"), (cls, "loss_cls"), (rec + cls, "loss_total"), (logits, "logits")):
            close(found.detach(), case[name], atol=2e-5, rtol=1e-5)
        optimizer.zero_grad()
        (rec + cls).backward()
        if step == 0:
            for key in case:
                if key.startswith("grad/"):
                    name = renamed(key.removeprefix("grad/"))
                    close(named[name].grad, case[key], atol=2e-5, rtol=1e-4)
                    solid[name] = case[key].abs() > 5e-6
        for parameter in named.values():
            if not zero_fill and not parameter.grad.any():
                parameter.grad = None
        optimizer.step()
    prefix = "step2_zero_grad_kept/param_after/" if zero_fill else "step2/param_after/"
    checked = 0
    for key, expected in golden.items():
        name = renamed(key.removeprefix(prefix))
        if key.startswith(prefix) and not name.endswith("qkv.bias"):  # a third of it has a gradient of rounding noise
            found = named[name].detach()
            close(found[solid[name]], expected[solid[name]], atol=5e-6, rtol=1e-5)
            checked += 1
    assert checked == (29 - 2 if zero_fill else 143 - 10)


@pytest.mark.parametrize("fusion", ["sum", "concat", "transformer"])
def test_baselines(fusion):
    golden = load("baseline")
    method = make(MultiModal, fusion=fusion, fusion_depth=2, preset="as_released")
    load_released(method, golden, "sd/", f"{fusion}/sd/")
    batch = batch_of(golden)
    with torch.no_grad():
        tokens, _ = method.tokens(batch)
        for i, name in enumerate(NAMES):
            close(tokens[:, i], golden[f"token/{name}"], atol=1e-5, rtol=1e-5)
        logits = method.classify(batch)
        close(logits, golden[f"{fusion}/preds"], atol=1e-5, rtol=1e-5)
        close(method.classification_loss(logits, batch.label), golden[f"{fusion}/loss_label"], atol=1e-5, rtol=1e-5)
        for size in (1, 2):
            for subset in combinations(NAMES, size):
                if fusion != "concat":
                    expected = golden[f"{fusion}/preds_only_{'+'.join(subset)}"]
                    close(method.classify(batch, subset), expected, atol=1e-5, rtol=1e-5)
        if fusion != "transformer":
            expected = torch.stack([golden[f"{fusion}/unimodal_logits/{name}"] for name in NAMES])
            close(method.fusion.unimodal(tokens), expected, atol=1e-5, rtol=1e-5)
            close(method.classify(batch, NAMES[:1], "late_average"), expected[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fusion", ["sum", "concat"])
def test_gradient_modulation(fusion):
    golden, weights = load("ogm_ge"), load("baseline")
    batch, kept = batch_of(golden), torch.ones(3, 3, dtype=torch.bool)
    logits = torch.stack([golden[f"{fusion}/unimodal_logits/{name}"] for name in NAMES])
    for alpha in (1.0, 0.1):
        expected = torch.stack([golden[f"{fusion}/alpha{alpha}/coeff/{name}"] for name in NAMES])
        found = coefficients(logits, batch.label, kept, alpha, "as_released")
        close(found, expected, atol=1e-6, rtol=1e-6)
        close(coefficients(logits, batch.label, kept, alpha), expected.clamp_max(1), atol=1e-6, rtol=1e-6)
    touched = set(np.load(GOLDEN / "ogm_ge.npz")[f"{fusion}/touched_params"])
    for preset in ("as_released", "corrected"):
        method = make(MultiModal, fusion=fusion, ogm_alpha=0.1, preset=preset, position=False)
        load_released(method, weights, "sd/", f"{fusion}/sd/").train()
        method.training_step(batch).backward()
        before = {name: p.grad.clone() for name, p in method.named_parameters()}
        method.on_before_optimizer_step(None)
        after = {name: p.grad for name, p in method.named_parameters()}
        for key in [k.removeprefix(f"{fusion}/grad_before/") for k in golden if k.startswith(f"{fusion}/grad_before/")]:
            close(before[renamed(key)], golden[f"{fusion}/grad_before/{key}"], atol=2e-5, rtol=1e-4)
            if preset == "as_released":
                close(after[renamed(key)], golden[f"{fusion}/grad_after_alpha0.1/{key}"], atol=2e-5, rtol=1e-4)
        changed = {name for name in after if not torch.equal(after[name], before[name])}
        if preset == "as_released":
            assert changed == {renamed(name) for name in touched}
        else:  # encoders alone, and no gradient grows
            assert changed and all(name.startswith("encoders.") for name in changed)
            assert all((after[name].abs() <= before[name].abs()).all() for name in after)


def test_schedule():
    golden = np.load(GOLDEN / "lr_schedule.npz")
    steps = int(golden["steps_per_epoch"])
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = staircase(optimizer, steps)
    for script in ("actionmae", "baseline"):
        places = golden[f"{script}/epoch"] * steps + golden[f"{script}/step"]
        found = [schedule.lr_lambdas[0](int(place)) for place in places]
        np.testing.assert_allclose(found, golden[f"{script}/lr_factor"], rtol=1e-12)
