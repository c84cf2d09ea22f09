"""Layout of a Rerun recording: the blueprint in the file."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from scripts.visualization.sample_view import short_name

GRIDS = {"prediction": "Prediction", "ground_truth": "Ground truth", "difference": "Difference"}
"""Label grids of a recording: entity below `world/ego/grid` and title."""

# Clockwise from the left: two rows of three.
_CAMERA_ORDER = ("front_left", "front", "front_right", "back_left", "back", "back_right")
_BACKGROUND = (24, 28, 35)


def camera_entity(name: str) -> str:
    """Return the entity of a camera: `CAM_FRONT` -> `world/ego/cameras/front`."""
    return f"world/ego/cameras/{short_name(name).lower()}"


def layout(cameras: Sequence[str], shown: Collection[str]) -> Any:
    """Return the blueprint: voxels side by side, cameras below, scores if there are any.

    Args:
        cameras: entities of the cameras.
        shown: the recorded ones of `GRIDS`, `"queries"`, `"lidar"` and `"scores"`.
    """
    import rerun.blueprint as rrb

    scenes = [_scene(rrb, title, kind) for kind, title in GRIDS.items() if kind in shown]
    extra = []
    if "queries" in shown:
        extra.append(_scene(rrb, "Query points", "queries"))
    if "lidar" in shown:
        extra.append(_scene(rrb, "LiDAR", "lidar"))
    # Prediction and ground truth side by side; the rest as tabs behind the second.
    if len(scenes) > 1:
        upper = rrb.Horizontal(scenes[0], rrb.Tabs(*scenes[1:], *extra, active_tab=0))
    else:
        upper = rrb.Horizontal(rrb.Tabs(*scenes, *extra, active_tab=0))
    lower: list[Any] = []
    if cameras:
        rank = {f"world/ego/cameras/{name}": i for i, name in enumerate(_CAMERA_ORDER)}
        ordered = sorted(cameras, key=lambda entity: rank.get(entity, len(rank)))
        views = [
            rrb.Spatial2DView(
                origin=f"/{entity}",
                contents="$origin/**",
                name=entity.rsplit("/", 1)[1].replace("_", " "),
            )
            for entity in ordered
        ]
        lower.append(rrb.Grid(*views, grid_columns=3))
    if "scores" in shown:
        lower.append(rrb.TimeSeriesView(origin="/scores", name="Scores of each sample"))
    rows: list[Any] = [upper]
    if lower:
        shares = [3, 1] if len(lower) == 2 else None
        rows.append(rrb.Horizontal(*lower, column_shares=shares))
    return rrb.Blueprint(
        rrb.Vertical(*rows, row_shares=[5, 4] if lower else None),
        rrb.BlueprintPanel(state="collapsed"),
        rrb.SelectionPanel(state="collapsed"),
        rrb.TimePanel(state="collapsed"),
    )


def _scene(rrb: Any, title: str, kind: str) -> Any:
    """Return a 3D view around the vehicle with one kind of content, the vehicle and its track."""
    what = "/world/ego/lidar" if kind == "lidar" else f"/world/ego/grid/{kind}/**"
    return rrb.Spatial3DView(
        origin="/world/ego",
        contents=[f"+ {what}", "+ /world/ego/vehicle", "+ /world/track/**"],
        name=title,
        background=_BACKGROUND,
    )
