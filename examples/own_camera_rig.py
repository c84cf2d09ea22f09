"""Predict the occupancy of your own recording, given images and a YAML file of calibrations.

    python examples/own_camera_rig.py CONFIG WEIGHTS FOLDER --out outputs/mine

FOLDER holds images by camera and `rig.yaml` (format: docs/inference.md). The result is a page for
the browser, and the voxels of every frame as .npz.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from models.inference import OccupancyInferencer, read_recording, write_page


def predict(config: str, weights: str, folder: str, out: str) -> None:
    """Predict all frames of a folder in order."""
    recording = read_recording(folder)
    inferencer = OccupancyInferencer(config, weights, cameras=recording.cameras)
    results = []
    for frame in recording:
        result = inferencer.push(frame)  # uses earlier frames as history
        result.save(Path(out, f"{result.name}.npz"))
        results.append(result)
        print(result)
    page = write_page(results, Path(out, f"{recording.name}.html"), list(recording))
    print(f"open {page} in a browser")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and predict."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="config of the model")
    parser.add_argument("weights", help="checkpoint of the model")
    parser.add_argument("folder", help="images by camera, and rig.yaml")
    parser.add_argument("--out", default="outputs/own_camera_rig", help="output folder")
    args = parser.parse_args(arguments)
    predict(args.config, args.weights, args.folder, args.out)


if __name__ == "__main__":
    main()
