"""The one prediction path, from frames or packed samples to predictions.

It needs no data set on disk, no info file and no label.
"""
