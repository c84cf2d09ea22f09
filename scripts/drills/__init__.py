"""Trainings that are disturbed at random and resumed, and what is lost by it."""
