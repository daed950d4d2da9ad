"""Configs of classifiers: what a protocol that trains one makes of the config of a run or of a checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skelact.engine.build import blank, build, locate
from skelact.errors import SkelactError

if TYPE_CHECKING:
    import torch

    from skelact.data.datamodules import SkeletonDataModule
    from skelact.methods.base import Method
    from skelact.protocols.training import Job, Outcome

SUPERVISED = "skelact.methods.supervised.Supervised"


def classifies(node: Mapping[str, Any], name: str) -> bool:
    """Whether the protocol of a node trains classifiers."""
    return bool(getattr(locate(node["_target_"], f"protocol {name}"), "classifies", False))


def prepare(config: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """The frozen config of a run whose protocol trains a classifier: with the classifier as its method.

    Args:
        config: frozen, with the method of the checkpoint or of the command line; of another protocol left as it is.
        keys: what the command line sets; that stays as it was given.

    Raises:
        SkelactError: protocol, method, checkpoint and data do not go together.
    """
    asked = config.get("evaluate") or []
    for name in [asked] if isinstance(asked, str) else asked:
        node = config["protocols"][name]
        if classifies(node, name) and not build(node, f"protocol {name}").follows:
            raise SkelactError(f"evaluate: {name} cannot follow another protocol; run it as protocol={name}")
    name, checkpoint = config["selected"], config.get("checkpoint")
    if not classifies(config["protocol"], name):
        return config
    protocol = build(config["protocol"], f"protocol {name}")
    if protocol.fresh and checkpoint:
        raise SkelactError(f"protocol={name} trains from scratch: leave checkpoint out, or take protocol=finetune")
    if protocol.fresh and not hasattr(locate(config["method"]["_target_"], "method"), "classify"):
        raise SkelactError(f"protocol={name} trains a classifier: add method=supervised")
    if not protocol.fresh and not checkpoint:
        raise SkelactError(
            f"protocol={name} needs pretrained weights: give checkpoint=RUN, or pretrain in the same command with "
            f"evaluate=[...]; from scratch trains protocol=supervised method=supervised"
        )
    source = config.get("source") or {}
    if name == "transfer" and all(source.get(key) == config["data"].get(key) for key in ("name", "split")):
        raise SkelactError(
            f"protocol=transfer: {checkpoint} was trained on {source.get('name')} {source.get('split')} itself; give "
            f"other data (data=NAME), or take protocol=finetune"
        )
    for key in keys:
        if key.startswith("data.") and key.removeprefix("data.") in protocol.decides:
            raise SkelactError(f"{key}=... cannot be given with protocol={name}, whose own options say it")
    # what was given on the command line holds for the run's further trainings, too
    config["given"] = [key for key in keys if key.partition(".")[0] in ("data", "trainer")]
    (first, *_), *_ = protocol.settings(int(config["seed"]))
    return training_config(config, protocol, first, config["given"])


def training_config(config: Mapping[str, Any], protocol: Any, job: Job, given: Sequence[str] = ()) -> dict[str, Any]:
    """The config of one training: the classifier as method, with the job's data, recipe and seed.

    What it wants of the data stands apart, in `training_data`: protocols that follow see all clips and all labels.

    Args:
        config: of the run; where its method is a classifier already it is made anew.
        protocol: says what it wants of the sections.
        job: which training.
        given: keys that the protocol may not change.
    """
    made = copy.deepcopy(dict(config))
    if not protocol.fresh:
        made["method"] = _classifier(made, getattr(protocol, "augment", None))
    for section, changes in protocol.changes(job).items():
        wanted = {key: value for key, value in changes.items() if f"{section}.{key}" not in given}
        if section == "data":
            made["training_data"] = wanted | {"seed": job.seed}
        else:
            made[section] = dict(made.get(section) or {}) | wanted
    made["seed"] = made["method"]["seed"] = job.seed
    return made


def _classifier(config: Mapping[str, Any], augment: str | None) -> dict[str, Any]:
    """The node of a classifier with the backbone, streams and sampling of the config's method."""
    node = config["method"]
    if not all(isinstance(node.get(key), Mapping) for key in ("backbone", "sampler")):
        raise SkelactError(f"{node.get('_target_')} has no backbone and sampler of which a classifier could be made")
    if config["data"].get("num_classes") is None:
        raise SkelactError("data.num_classes is not known: prepare the data first (skelact prepare), or give it")
    views: dict[str, Any] = {"_target_": "skelact.transforms.views.ViewMaker", "sampler": node["sampler"]}
    if augment == "method":
        if not isinstance(config.get("augment"), Mapping):
            raise SkelactError("augment=method: the encoder was trained without augmentation; take augment=null")
        views = dict(config["augment"])
        if views.get("transforms"):  # one for each view: the last is the mildest
            views["transform"] = views.pop("transforms")[-1]
    return {
        "_target_": SUPERVISED,
        "backbone": node["backbone"],
        "layout": node["layout"],
        "num_classes": config["data"]["num_classes"],
        "streams": node.get("streams"),
        "sampler": node["sampler"],
        "augment": {**views, "views": None},
        "preset": node.get("preset", config.get("preset", "corrected")),
        "use_mask": node.get("use_mask"),
    }


def take_backbone(method: Method, source: Method, name: str = "checkpoint") -> None:
    """Fill a method's backbone with another one's weights, strictly: half a start would look like a weak encoder.

    Raises:
        SkelactError: a weight is missing, left over or of another shape.
    """
    try:
        missing, unexpected = method.backbone.load_state_dict(source.backbone.state_dict(), strict=False)
    except RuntimeError as error:  # torch's message has a line for each shape
        first = str(error).splitlines()[1].strip()
        raise SkelactError(f"{name}: the backbone's weights do not fit: {first}") from error
    if missing or unexpected:
        raise SkelactError(
            f"{name}: the backbone's weights do not fit; missing {missing[:5]}, unexpected {unexpected[:5]}"
        )


class Trainings:
    """Does the trainings of a protocol that are not the run's own: on one device, each in a directory of its own.

    Args:
        config: frozen config of the run.
        name: of the protocol.
        protocol: the protocol.
        datamodule: the run's data.
        source: whose backbone pretrained jobs begin with.
        device: the one device.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        name: str,
        protocol: Any,
        datamodule: SkeletonDataModule,
        source: Method | None,
        device: torch.device,
    ) -> None:
        self.config, self.name, self.protocol = config, name, protocol
        self.datamodule, self.source, self.device = datamodule, source, device

    def __call__(self, job: Job) -> Outcome:
        """Build, train, and leave config.yaml, metrics.csv and checkpoints in `run_dir/<protocol>/<job>`."""
        import torch

        from skelact.callbacks.metrics_csv import MetricsCSV
        from skelact.engine.run import CONFIG, METRICS, make_trainer
        from skelact.engine.settings import write_yaml
        from skelact.protocols.training import fit

        folder = Path(self.config["run_dir"]) / self.name / job.folder
        config = self.config_of(job, folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_yaml(folder / CONFIG, config)
        datamodule = self.datamodule.variant(**config["training_data"])
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(job.seed)
            method = build(config["method"] if self.protocol.fresh else blank(config["method"]), "method")
            if job.pretrained and self.source is not None:
                take_backbone(method, self.source)
            logger = MetricsCSV(folder / METRICS)
            outcome = fit(method, datamodule, make_trainer(config, datamodule, method, [logger], folder))
            logger.finalize("success")
        return outcome

    def config_of(self, job: Job, folder: Path) -> dict[str, Any]:
        """The job's config, as it would be if it were a run."""
        own = self.config["selected"] == self.name
        made = training_config(self.config, self.protocol, job, self.config.get("given") or () if own else ())
        devices = made["trainer"].get("devices")
        one = devices[:1] if isinstance(devices, list) else 1
        made["trainer"] |= {"devices": one, "strategy": "auto", "num_nodes": 1}
        kept = ("finite_loss", "checkpoint", "progress", "best_epoch")
        made["callbacks"] = {key: made["callbacks"][key] for key in kept if key in made["callbacks"]}
        made |= {"selected": self.name, "protocol": made["protocols"][self.name]}
        made |= {"run_dir": str(folder), "evaluate": []}
        return {key: value for key, value in made.items() if key not in ("resume", "logger_id", "given")}
