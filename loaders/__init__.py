"""From disk to batch, and from predictions to scores.

`info_io` reads and writes info files, `datasets` turns them into samples, `transforms` fill
a sample with images and labels, `metrics` score predictions. Importing this package imports
nothing else; `loaders.register` enters every part into MMEngine's registries.
"""
