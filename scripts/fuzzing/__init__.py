"""Seeded odd inputs for ``scripts/fuzz.py``."""
