"""From frames or packed samples to predictions: the one path that everything that predicts takes.

It needs no data set on disk, no info file and no label.
"""
