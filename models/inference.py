"""Public names of inference: `from models.inference import OccupancyInferencer`.

The implementation needs the loaders, the configs and the renderer, and is therefore in
`scripts/inference`. No other module of `models` may import this one.
"""

from scripts.inference.inferencer import OccupancyInferencer
from scripts.inference.pictures import write_page
from scripts.inference.result import Grid, OccupancyResult
from scripts.inference.rig_files import Recording, read_recording
from scripts.prediction.errors import FrameError
from scripts.prediction.frames import CameraFrame, Frame, LidarSweep, pose

__all__ = [
    "CameraFrame",
    "Frame",
    "FrameError",
    "Grid",
    "LidarSweep",
    "OccupancyInferencer",
    "OccupancyResult",
    "Recording",
    "pose",
    "read_recording",
    "write_page",
]
