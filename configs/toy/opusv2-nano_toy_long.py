# The nano model with a longer schedule: under an hour on two cores (`make toy-train`).
_base_ = ["./opusv2-nano_toy.py"]

# Flips of the whole scene prevent overfitting to the scenes in a longer training.
bev_flip_prob = 0.5
max_epochs = 75
