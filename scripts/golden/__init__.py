"""Comparison of this code with files of reference numbers; see `scripts/check_golden.py`."""
