# A longer schedule from scratch, for `make toy-train` without a pretrained image network.
_base_ = ["./opusv2-plus-nano_toy.py"]

# Flips of the whole scene prevent overfitting to the scenes in a longer training.
bev_flip_prob = 0.5
max_epochs = 40
