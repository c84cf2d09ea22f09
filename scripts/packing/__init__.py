"""Packed data roots: images at the size that training needs, labels without compression."""
