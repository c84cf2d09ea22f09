# Fine-tuning of the model of `make toy-pretrain` (pretrain/opusv2-nano_toy.pth) on the demo's scenes.
# Give the weights with --load-from.
_base_ = ["./opusv2-nano_toy.py"]

optim_wrapper = dict(optimizer=dict(lr=1e-3))
max_epochs = 6
