"""The Inferencer: frames in, typed results out; files and pictures of results."""
