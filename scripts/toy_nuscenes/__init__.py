"""Generator of a small procedural data set in the nuScenes layout.

The package builds one voxel world per scene and derives everything from it: camera images, LiDAR
sweeps, annotation boxes, Occ3D labels and OpenOccupancy labels. `scripts/make_toy_nuscenes.py` is
its command line.

Reading order: `options` (what can be asked for), `recipes` (what the ten scenes are), `scene` (how
one world is assembled), `frames` (what is rendered when), `writer` (how it reaches the disk).
"""
