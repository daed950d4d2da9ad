"""Released checkpoints of the contrastive family; that they load rightly is what the methods' golden tests show."""

import pytest
import torch

from skelact.errors import SkelactError
from skelact.interop import load_official
from skelact.methods.caca import CACA, CMAL
from skelact.methods.moco import AimCLR, CrosSCLR, SkeletonCLR
from tests.methods.golden_contrastive import golden, state

FILES = {
    "skeletonclr": ("skeletonclr", SkeletonCLR, ("joint",)),
    "aimclr": ("aimclr", AimCLR, ("joint",)),
    "crosclr 2": ("crossclr_2views", CrosSCLR, ("joint", "motion")),
    "crosclr 3": ("crossclr_3views", CrosSCLR, ("joint", "motion", "bone")),
    "cmal": ("caca_single", CMAL, ("joint",)),
    "caca": ("caca_3views", CACA, ("joint", "motion", "bone")),
}


@pytest.mark.parametrize("kind", FILES)
def test_sizes_and_streams_are_read_off_the_tensors(kind):
    name, cls, streams = FILES[kind]
    method = load_official(kind.split()[0], state(golden(name)))
    assert type(method) is cls and method.streams == streams and method.preset == "as_released"
    assert not method.training and not method.use_mask and method.backbone.hidden in (2, 4)
    views = torch.randn(2, 2, 50, 25, 3)
    assert method.encode(views).shape == (2, method.num_features)


@pytest.mark.parametrize("kind", FILES)
def test_every_tensor_must_be_there_and_fit(kind):
    system, (name, _, streams) = kind.split()[0], FILES[kind]
    whole = state(golden(name))
    first = "online_backbone" if system in ("cmal", "caca") else "encoder_q"
    end = f"_{streams[-1]}" if len(streams) > 1 else ""
    tensor = f"{first}{end}.st_gcn_networks.3.tcn.2.bias"
    with pytest.raises(SkelactError, match=f"missing: {tensor}"):
        load_official(system, {k: v for k, v in whole.items() if k != tensor})
    with pytest.raises(SkelactError, match=r"unexpected: encoder_v\.weight"):
        load_official(system, {**whole, "encoder_v.weight": torch.zeros(1)})
    with pytest.raises(SkelactError, match=rf"misshaped: {tensor} \(3,\) for"):
        load_official(system, {**whole, tensor: torch.zeros(3)})


def test_prefix_of_distributed_training_and_files(tmp_path):
    whole = state(golden("aimclr"))
    torch.save({f"module.{name}": value for name, value in whole.items()}, tmp_path / "epoch300.pt")
    ours, theirs = load_official("aimclr", tmp_path / "epoch300.pt"), load_official("aimclr", whole)
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))


def test_copies_of_the_tied_head_must_agree():
    whole = state(golden("crossclr_3views"))
    whole["encoder_q_bone.fc.2.0.weight"] = whole["encoder_q_bone.fc.2.0.weight"] + 1
    with pytest.raises(SkelactError, match=r"contradicting: encoder_q_bone\.fc\.2\.0\.weight"):
        load_official("crosclr", whole)


def test_a_fork_with_a_head_for_each_stream():
    whole = state(golden("crossclr_2views"))
    for side in "qk":
        for tensor in ("weight", "bias"):
            own = whole.pop(f"encoder_{side}_motion.fc.2.2.{tensor}")
            whole.pop(f"encoder_{side}_motion.fc.2.0.{tensor}")
            whole[f"encoder_{side}_motion.fc.2.{tensor}"] = own + 1
    method = load_official("crosclr", whole)
    assert not method.head.tied
    assert torch.equal(method.head.output.bias[1], whole["encoder_q_motion.fc.2.bias"])


@pytest.mark.parametrize(
    ("system", "prefix", "head"), [("aimclr", "encoder_q", "fc"), ("cmal", "online_", "projector")]
)
def test_checkpoints_of_linear_evaluation(system, prefix, head):
    name = FILES[system][0]
    trunk = "encoder_q." if system == "aimclr" else "online_backbone."
    kept = {k: v for k, v in state(golden(name)).items() if k.startswith(trunk) and ".fc." not in k}
    classifier = f"{prefix}.fc" if head == "fc" else "online_projector"
    width = load_official(system, state(golden(name))).num_features
    kept |= {f"{classifier}.weight": torch.zeros(60, width), f"{classifier}.bias": torch.zeros(60)}
    with pytest.warns(UserWarning, match="linear evaluation"):
        method = load_official(system, kept)
    own = method.backbone.trunk_state("joint")
    assert all(torch.equal(own[k].flatten(), kept[trunk + k].flatten()) for k in own)


def test_other_graphs_and_streams_are_refused():
    whole = state(golden("skeletonclr"))
    with pytest.raises(SkelactError, match="another graph than layout=kinect20"):
        load_official("skeletonclr", whole, layout="kinect20")
    with pytest.raises(SkelactError, match="SkeletonCLR or AimCLR"):
        load_official("crosclr", whole)
    with pytest.raises(SkelactError, match="missing: online_backbone_joint"):
        load_official("caca", whole)
