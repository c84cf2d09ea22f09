"""Trainings that are disturbed at random and resumed, to count lost work."""
