"""Commands over the toy data set: the demo, the family table, the gallery."""
