"""Comparison of the code with reference numbers; see `scripts/check_golden.py`."""
