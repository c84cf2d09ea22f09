"""Speed of a model: frames per second, and what a frame is made of."""
