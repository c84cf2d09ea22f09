"""Seeded cases for `scripts/fuzz.py`: odd inputs that must end in no crash or other error."""
