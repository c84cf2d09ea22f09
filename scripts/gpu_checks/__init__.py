"""First check on a GPU: build, comparison with the reference implementations, times, one table."""
