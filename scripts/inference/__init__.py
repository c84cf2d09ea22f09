"""The Inferencer: predict frames, and save and draw the results."""
