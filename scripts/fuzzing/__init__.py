"""Seeded cases for `scripts/fuzz.py`: invalid inputs must not cause crashes or other errors."""
