"""The first minutes on a GPU: build, compare with the twins, time, one table."""
