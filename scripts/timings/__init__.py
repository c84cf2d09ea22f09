"""Speed of a model: frames per second, and the stages of a frame."""
