"""Generator of a small procedural data set in the nuScenes layout.

The package builds one voxel world per scene and derives everything from it: camera images, LiDAR
sweeps, annotation boxes, Occ3D labels and OpenOccupancy labels. `scripts/make_toy_nuscenes.py` is
its command line.

Reading order: `options` (parameters), `recipes` (the ten kinds of scenes), `scene` (assembly of one
world), `frames` (rendering of all measurements), `writer` (files on disk).
"""
