"""Everything about LiDAR: files of key frames and sweeps, their points, and the range filter.

Whether LiDAR is used is one flag, `use_lidar` of the data set and of the head.
"""
