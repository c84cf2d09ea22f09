"""LiDAR: files of key frames and sweeps, their points, and the range filter.

The flag `use_lidar` of the data set and of the head turns LiDAR on.
"""
