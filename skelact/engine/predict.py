"""`skelact predict`: labels or embeddings for clips that belong to no dataset."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from skelact.clips import RaggedClips
from skelact.engine.build import build_data
from skelact.errors import SkelactError

_ENDINGS = (".npy", ".npz", ".csv")


def predict(cfg: DictConfig) -> int:
    """Read the clips, normalise them as in training, encode them, and write what was asked for."""
    from skelact.engine.checkpoint import KEY, read, restore
    from skelact.engine.run import pick_device

    if cfg.what not in ("labels", "embeddings"):
        raise SkelactError(f"what={cfg.what} is neither labels nor embeddings")
    if not isinstance(cfg.k, int) or cfg.k < 1:
        raise SkelactError(f"k={cfg.k}: at least one neighbour must vote")
    content = read(str(cfg.checkpoint))
    config = content[KEY]["config"]
    changes: Any = OmegaConf.to_container(cfg.data) if cfg.get("data") else {}
    node = {**config["data"], **changes}
    method = restore(content, str(cfg.checkpoint)).to(pick_device({"accelerator": cfg.accelerator}))
    streams = list(cfg.streams) if cfg.streams else None
    names, batches = read_clips(
        Path(str(cfg.source)).expanduser(), node, method.layout, cfg.layout, int(cfg.batch_size)
    )
    features = encode(method, batches, streams)
    if cfg.what == "embeddings":
        target = Path(str(cfg.output or "embeddings.npz"))
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial.npz")
        np.savez(partial, name=np.array(names), features=features.cpu().numpy())
        partial.replace(target)
        print(f"{target}: {len(names)} clips, features {tuple(features.shape)}")
        return 0
    scores, classes = vote(method, build_data(node), features, streams, int(cfg.k), content[KEY]["class_names"])
    best = scores.argmax(1).tolist()
    share = scores.max(1).values.tolist()
    lines = ["name,label,share", *(f"{n},{classes[b]},{s:.3f}" for n, b, s in zip(names, best, share, strict=True))]
    if cfg.output:
        from skelact.engine.files import replace_text

        replace_text(Path(str(cfg.output)), "\n".join(lines) + "\n")
        print(f"{cfg.output}: {len(names)} clips")
    else:
        print("\n".join(lines))
    return 0


@torch.no_grad()
def encode(method: Any, batches: Iterator[RaggedClips], streams: list[str] | None) -> Tensor:
    """Features `(N, D)` of all batches, on the method's device."""
    device = next(method.parameters()).device
    return torch.cat([method.features(batch.to(device), streams) for batch in batches])


def vote(
    method: Any, datamodule: Any, features: Tensor, streams: list[str] | None, k: int, classes: list[str]
) -> tuple[Tensor, list[str]]:
    """Votes of the k most similar labelled training clips (cosine): `(N, classes)` shares, and the classes' names."""
    from torch.nn.functional import normalize, one_hot

    device = features.device
    gallery = normalize(encode(method, datamodule.batches("train", device=device), streams).float(), dim=1)
    label = torch.as_tensor(np.asarray(datamodule.labels("train")), device=device)
    known = label >= 0
    gallery, label = gallery[known], label[known]
    if not len(gallery):
        raise SkelactError("predict: the training clips have no labels to vote with; ask for what=embeddings")
    k = min(k, len(gallery))
    votes = []
    for part in normalize(features.float(), dim=1).split(1024):
        similarity, nearest = (part @ gallery.T).topk(k, dim=1)
        weight = similarity.clamp_min(1e-6)  # breaks ties between classes by similarity
        votes.append((one_hot(label[nearest], len(classes)) * weight[..., None]).sum(1) / weight.sum(1, keepdim=True))
    return torch.cat(votes), classes


def read_clips(
    source: Path, node: dict[str, Any], layout: Any, given: Any, batch_size: int
) -> tuple[list[str], Iterator[RaggedClips]]:
    """Names and batches of the clips in a file, a folder or a store, as the checkpoint's data would give them.

    Args:
        source: where they are.
        node: data config of the checkpoint.
        layout: joint layout of the method.
        given: joint layout of the clips where it is another one.
        batch_size: clips of a batch.

    Raises:
        SkelactError: nothing there, or a clip that cannot be read; the message names the file.
    """
    if (source / "card.json").is_file():
        from skelact.data.loading import ClipLoader
        from skelact.data.store import Store
        from skelact.skeleton.layouts import get_layout

        store = Store(source)
        rows = np.arange(len(store))
        chunks = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
        loader, convert = ClipLoader(store, get_layout(layout)), _converter(layout, layout, node)
        return [str(n) for n in store.names], (convert(loader.load(some)) for some in chunks)
    if not source.exists():
        raise SkelactError(f"source {source} does not exist")
    files = sorted(p for p in source.rglob("*") if p.suffix.lower() in _ENDINGS and p.name != "clips.csv")
    files = files if source.is_dir() else [source]
    if not files:
        raise SkelactError(f"source {source} holds no clip ({', '.join(_ENDINGS)})")
    own = given if given is not None else layout
    convert = _converter(own, layout, node)
    names = [str(p.relative_to(source)) if source.is_dir() else p.name for p in files]
    return names, _read_files(files, own, node, convert, batch_size)


def _read_files(files: list[Path], own: Any, node: dict[str, Any], convert: Any, size: int) -> Iterator[RaggedClips]:
    from skelact.data.readers.base import Item
    from skelact.data.readers.custom import CustomReader

    reader = CustomReader(own, persons=int(node["persons"]), channels=int(node["channels"]), missing="nan")
    for first in range(0, len(files), size):
        clips = [reader.read(Item(path.stem, path)) for path in files[first : first + size]]
        masks = [torch.from_numpy(np.array(clip.mask)) for clip in clips if clip.mask is not None]
        frames = [torch.from_numpy(np.array(clip.frames, dtype=np.float32)) for clip in clips]
        index = range(first, first + len(frames))
        yield convert(RaggedClips.pack(frames, index=list(index), mask=masks if len(masks) == len(frames) else None))


def _converter(source: Any, target: Any, node: dict[str, Any]) -> Any:
    """From clips in one layout to normalised clips in another."""
    from skelact.skeleton.convert import convert
    from skelact.skeleton.layouts import get_layout
    from skelact.transforms.normalize import make_normalizer

    own, wanted = get_layout(source), get_layout(target)
    mode = node.get("normalize")
    if isinstance(mode, dict) and "_target_" in mode:
        from skelact.engine.build import build

        normalize = build(mode, "data.normalize")
    else:
        normalize = make_normalizer(mode, wanted)

    def apply(clips: RaggedClips) -> RaggedClips:
        if own != wanted:
            frames, mask = convert(clips.frames, own, wanted, clips.mask)
            clips = RaggedClips(frames, clips.start, clips.length, clips.label, clips.index, mask)
        return clips if normalize is None else normalize(clips)

    return apply
