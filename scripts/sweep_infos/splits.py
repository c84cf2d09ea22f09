"""Assignment of scenes to splits: nuScenes' lists, a file, or lists on the command line."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from loaders.errors import BadDataError, MissingDataError
from scripts.runtime.errors import ConfigError

# Splits and their names in the devkit, by nuScenes version; other versions use _OTHERS.
SPLITS = {
    "v1.0-trainval": {"train": "train", "val": "val"},
    "v1.0-test": {"test": "test"},
    "v1.0-mini": {"train": "mini_train", "val": "mini_val"},
}
_OTHERS = {"train": "train", "val": "val", "test": "test"}
SPLITS_FILE = "splits.json"
_WAY_OUT = f"list the scenes of each split with --split NAME SCENE ..., or in a {SPLITS_FILE}"


@dataclass(frozen=True)
class Splits:
    """Scenes by split.

    Attributes:
        scenes: Indices into the table of scenes, sorted by scene name; no list is empty.
        labels: Name of each split in the info file's header.
        notes: Sentences about scenes that are left out or in two splits.
    """

    scenes: Mapping[str, list[int]]
    labels: Mapping[str, str]
    notes: Sequence[str]


def devkit_scenes(split: str) -> list[str]:
    """Return the scenes of a split of `nuscenes.utils.splits`."""
    from nuscenes.utils.splits import create_splits_scenes  # slow to import

    names: list[str] = create_splits_scenes()[split]
    return names


def choose_splits(
    names: Sequence[str],
    folder: Path,
    lists: Sequence[Sequence[str]] | None = None,
    file: Path | None = None,
) -> Splits:
    """Divide the scenes of a data set.

    Args:
        names: Names of the scenes in the tables.
        folder: Folder of the tables; its name is the version. A `splits.json` there, or else in the
            parent folder, replaces nuScenes' lists.
        lists: For each split its name, followed by its scenes or patterns such as `night-*`.
        file: JSON file with the scenes of each split.

    Raises:
        ConfigError: A split of the command line has no name, or a scene does not exist.
        BadDataError: The file is invalid, or no scene is in a split.
    """
    labels: Mapping[str, str] = {}
    if lists:
        wanted = _from_lists(lists, names)
    else:
        found = [p for p in (folder / SPLITS_FILE, folder.parent / SPLITS_FILE) if p.is_file()]
        if file is not None or found:
            wanted = _from_file(file or found[0])
        else:
            labels = SPLITS.get(folder.name, _OTHERS)
            wanted = {split: devkit_scenes(theirs) for split, theirs in labels.items()}
    scenes = {
        split: sorted((i for i, name in enumerate(names) if name in members), key=names.__getitem__)
        for split, members in ((split, set(members)) for split, members in wanted.items())
    }
    if not any(scenes.values()):
        raise BadDataError(
            f"the tables in {folder} have no scene of the splits {', '.join(wanted)}, but "
            f"{_shortened(names)}: {_WAY_OUT}"
        )
    return Splits(
        {split: members for split, members in scenes.items() if members},
        {split: labels.get(split, split) for split in scenes},
        _notes(names, scenes),
    )


def _notes(names: Sequence[str], scenes: Mapping[str, list[int]]) -> list[str]:
    notes = [
        f"the tables have no scene of the split {split}: no info file is written for it"
        for split, members in scenes.items()
        if not members
    ]
    chosen = [i for members in scenes.values() for i in members]
    left = [name for i, name in enumerate(names) if i not in set(chosen)]
    if left:
        notes.append(
            f"{len(left)} of {len(names)} scenes are in no split and are left out "
            f"({_shortened(left)}): {_WAY_OUT}"
        )
    twice = sorted({names[i] for i in chosen if chosen.count(i) > 1})
    if twice:
        notes.append(f"{len(twice)} scenes are in several splits ({_shortened(twice)})")
    return notes


def _from_lists(lists: Sequence[Sequence[str]], names: Sequence[str]) -> dict[str, list[str]]:
    wanted: dict[str, list[str]] = {}
    for split, *patterns in lists:
        if not patterns:
            raise ConfigError(f"--split {split} has no scene: write --split {split} SCENE ...")
        check_split_name(split, "--split")
        for pattern in patterns:
            matching = fnmatch.filter(names, pattern)
            if not matching:
                near = get_close_matches(pattern, names, n=3) or [*names[:3]]
                raise ConfigError(
                    f"--split {split}: the tables have no scene {pattern}: choose existing "
                    f"ones, such as {', '.join(near)}"
                )
            wanted.setdefault(split, []).extend(matching)
    return wanted


def check_split_name(split: str, origin: str) -> None:
    """Raise ConfigError unless a split's name can be part of a file's name."""
    if not split or not split.replace("_", "").replace("-", "").isalnum():
        raise ConfigError(f"{origin}: '{split}' is not the name of a split, use letters and digits")


def _from_file(path: Path) -> dict[str, list[str]]:
    """Read `{"train": ["scene-0001", ...], ...}`."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingDataError(f"{path} does not exist: {_WAY_OUT}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BadDataError(f"{path} is not valid JSON ({error}): correct it") from error
    is_right = isinstance(content, dict) and all(
        isinstance(members, list) and all(isinstance(name, str) for name in members)
        for members in content.values()
    )
    if not is_right or not content:
        raise BadDataError(f'{path} must be like {{"train": ["scene", ...], "val": [...]}}')
    for split in content:
        check_split_name(split, str(path))
    return dict(content)


def _shortened(names: Sequence[str], number: int = 5) -> str:
    more = f" and {len(names) - number} more" if len(names) > number else ""
    return f"{', '.join(names[:number])}{more}" if names else "none at all"
