"""Which clip has which modality: stores of one dataset paired by the names of their clips.

Never by position: a clip that one modality lacks would shift all that follow it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from skelact.data.media import MediaStore
from skelact.data.store import CARD, Store, StoreError
from skelact.data.table import ClipTable
from skelact.errors import SkelactError

if TYPE_CHECKING:
    from rich.table import Table

SKELETON = "skeleton"


@dataclass(frozen=True)
class Pairing:
    """Clips of several modalities.

    Attributes:
        names: `(N,)` names that at least one modality has, sorted.
        modalities: in the order given.
        rows: `(N, n_modalities)` int64: position of the clip in each modality's own list, -1 where it lacks it.
        unpaired: modality -> names of its clips that some other modality lacks.
    """

    names: np.ndarray
    modalities: tuple[str, ...]
    rows: np.ndarray
    unpaired: dict[str, list[str]]

    @property
    def availability(self) -> np.ndarray:
        """`(N, n_modalities)` bool: whether the clip has the modality."""
        return self.rows >= 0

    @property
    def complete(self) -> np.ndarray:
        """`(n,)` positions in :attr:`names` of the clips that every modality has."""
        return np.flatnonzero(self.availability.all(axis=1))

    def __str__(self) -> str:
        lines = [f"{len(self.names)} clips, {len(self.complete)} of them in all of {', '.join(self.modalities)}"]
        for column, modality in enumerate(self.modalities):
            have = self.availability[:, column]
            lines.append(f"  {modality}: {int(have.sum())} clips, lacks {int((~have).sum())}{_some(self.names[~have])}")
        return "\n".join(lines)


def pair(names: Mapping[str, Sequence[str] | np.ndarray]) -> Pairing:
    """Pair the clips of several modalities by name.

    Args:
        names: modality -> names of its clips, each unique, in any order.

    Raises:
        SkelactError: no modality, or a name twice in one.
    """
    if not names:
        raise SkelactError("there is no modality to pair")
    lists = {modality: [str(name) for name in given] for modality, given in names.items()}
    union = sorted(set().union(*lists.values()))
    place = {name: position for position, name in enumerate(union)}
    rows = np.full((len(union), len(lists)), -1, np.int64)
    for column, (modality, given) in enumerate(lists.items()):
        for row, name in enumerate(given):
            if rows[place[name], column] >= 0:
                raise SkelactError(f"modality {modality} has clip {name} twice")
            rows[place[name], column] = row
    partial = ~(rows >= 0).all(axis=1)
    unpaired = {
        modality: [union[k] for k in np.flatnonzero(partial & (rows[:, column] >= 0)).tolist()]
        for column, modality in enumerate(lists)
    }
    return Pairing(np.array(union, dtype=str), tuple(lists), rows, unpaired)


def pair_stores(stores: Mapping[str, Store]) -> Pairing:
    """Pair open stores, and check that they agree on the class of each clip they share.

    Raises:
        SkelactError: two stores give one clip different labels.
    """
    pairing = pair({modality: store.names for modality, store in stores.items()})
    label = np.full(pairing.rows.shape, -1, np.int64)
    for column, store in enumerate(stores.values()):
        have = pairing.rows[:, column] >= 0
        label[have, column] = store.label[pairing.rows[have, column]]
    known = np.where(label >= 0, label, label.max(axis=1, keepdims=True))
    differ = (known != known[:, :1]).any(axis=1)
    if differ.any():
        row = int(np.flatnonzero(differ)[0])
        found = {m: int(value) for m, value in zip(pairing.modalities, label[row], strict=True) if value >= 0}
        raise SkelactError(
            f"clip {pairing.names[row]} has different labels: {found}; the stores do not belong together"
        )
    return pairing


def media_paths(store: str | Path, media: Mapping[str, Any]) -> dict[str, Path]:
    """Where the media stores of a dataset lie: `<store>.<modality>`.

    Args:
        store: the skeleton store.
        media: the `media` node of the dataset's configuration: modality -> its reader; the key `store`, if there is
            one, stands for `store` (datasets with several skeleton stores and one set of videos).
    """
    base = Path(str(media.get("store") or store)).expanduser()
    return {name: base.with_name(f"{base.name}.{name}") for name in media if name != "store"}


def open_any(path: str | Path) -> Store:
    """The store of skeletons or of another modality in a folder.

    Raises:
        StoreError: there is none, or it is damaged.
    """
    try:
        media = "media" in json.loads((Path(path) / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        media = False  # opening it says what is wrong
    return MediaStore(path) if media else Store(path)


def open_modalities(store: str | Path, media: Mapping[str, Any]) -> dict[str, Store]:
    """The stores of a dataset that exist, `skeleton` first.

    Raises:
        StoreError: one exists and is damaged.
    """
    found: dict[str, Store] = {}
    path = Path(store).expanduser()
    if (path / CARD).is_file():
        found[SKELETON] = Store(path)
    for name, place in media_paths(path, media).items():
        if (place / CARD).is_file():
            found[name] = MediaStore(place)
    return found


def describe(stores: Mapping[str, Store]) -> Table:
    """A table of the modalities of a dataset: what each holds, how many clips, how many it lacks."""
    from rich.table import Table

    pairing = pair_stores(stores)
    everywhere = len(pairing.complete)
    title = f"modalities: {len(pairing.names)} clips, {everywhere} in all, {len(pairing.names) - everywhere} in some"
    table = Table(title=title, title_justify="left")
    for heading in ("modality", "clips", "lacks", "frames", "frame", "rate", "size"):
        table.add_column(heading, justify="left" if heading == "modality" else "right")
    for column, (modality, store) in enumerate(stores.items()):
        lacks = pairing.names[pairing.rows[:, column] < 0]
        length = np.asarray(store.length)
        spread = str(length[0]) if (length == length[0]).all() else f"{length.min()} to {length.max()}"
        size = sum(entry["bytes"] for entry in store.card["files"].values())
        table.add_row(
            modality, str(len(store)), f"{len(lacks)}{_some(lacks)}", spread, _frame(store),
            f"{float(store.card['fps']):g}/s", f"{size / 1e6:.1f} MB",
        )  # fmt: skip
    return table


def _frame(store: Store) -> str:
    """What one frame is, in a few words."""
    if not isinstance(store, MediaStore):
        return " x ".join(str(n) for n in store.shape[1:])
    media = store.card["media"]
    if store.kind == "signal":
        return f"{len(store.card['channels'])} channels"
    return f"{' x '.join(str(n) for n in store.read(0, [0]).shape[1:3])} {media['colour']}, {media['encoding']}"


def _some(names: np.ndarray) -> str:
    """The first three names in brackets."""
    shown = ", ".join(names[:3].tolist())
    return f" ({shown}{', ...' if len(names) > 3 else ''})" if len(names) else ""


class ModalTable(ClipTable):
    """The clips of several stores of one dataset by name: a clip is in it where at least one modality has it.

    Names, classes and columns are those of whichever store has the clip; the card is that of the skeletons, else of the
    first store, with a fingerprint of its own over all stores.

    Args:
        stores: modality -> open store.
        complete: only clips that every modality has.
        rules: of the splits, where the card of the first store has none (an earlier version prepared it).

    Attributes:
        stores: as given.
        modalities: their names.
        rows: `(N, n_modalities)` int64: position of a clip in each store, -1 where it lacks the modality.

    Raises:
        SkelactError: stores disagree on a clip or on the number of classes, there are no split rules, or no clip is
            left.
    """

    def __init__(
        self, stores: Mapping[str, Store], complete: bool = False, rules: Mapping[str, Any] | None = None
    ) -> None:
        pairing = pair_stores(stores)
        kept = pairing.complete if complete else np.arange(len(pairing.names))
        if not len(kept):
            raise SkelactError(f"data.complete=true, and no clip has all modalities:\n{pairing}")
        self.stores, self.modalities, self.rows = dict(stores), pairing.modalities, pairing.rows[kept]
        first = stores.get(SKELETON) or next(iter(stores.values()))
        if len(sizes := {len(store.class_names) for store in stores.values()}) > 1:
            raise SkelactError(f"{first.name}: the stores of {', '.join(stores)} have {sorted(sizes)} classes")
        self.path = first.path
        self.columns = {"name": pairing.names[kept]}
        self.columns |= self._join()
        facts = {"names": self.names.tolist(), "stores": {m: store.fingerprint for m, store in stores.items()}}
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
        rules = first.card.get("splits", rules)
        if rules is None:
            raise StoreError(first.path, "has no split rules: an earlier version prepared it; prepare it again")
        self.card = {**first.card, "splits": dict(rules), "fingerprint": digest}

    def verify(self) -> None:
        """Check every byte of every store."""
        for store in self.stores.values():
            store.verify()

    def _join(self) -> dict[str, np.ndarray]:
        """The columns that are known of every clip."""
        columns = {}
        stores = list(self.stores.values())
        for key in dict.fromkeys(key for store in stores for key in store.columns):
            if key in ("name", "start", "length"):
                continue
            having = [(rows, store) for rows, store in zip(self.rows.T, stores, strict=True) if key in store.columns]
            if not np.logical_or.reduce([rows >= 0 for rows, _ in having]).all():
                continue
            values = np.zeros(len(self.rows), np.result_type(*(store.columns[key].dtype for _, store in having)))
            known = np.zeros(len(values), bool)
            for rows, store in having:
                here = rows >= 0
                found = store.columns[key][rows[here]]
                if key == "label":  # -1: this store does not know it
                    here[here] = found >= 0
                    found = found[found >= 0]
                clash = known[here] & (values[here] != found)
                if clash.any():
                    name = self.columns["name"][here][clash][0]
                    raise SkelactError(f"clip {name} has different values of {key} in the stores of its modalities")
                values[here], known[here] = found, True
            if key == "label":
                values[~known] = -1
            columns[key] = values
        return columns
