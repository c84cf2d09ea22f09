"""Commands around training, evaluation and pictures."""
