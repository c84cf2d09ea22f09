# Fine-tuning of the model of `make toy-pretrain` (pretrain/opusv2-plus-nano_toy.pth) on the demo's scenes.
# Give the weights with --load-from. Rate and averaging were chosen on two of the training scenes
# (configs/ablations/fine_tuning.yaml).
_base_ = ["./opusv2-plus-nano_toy.py"]

optim_wrapper = dict(optimizer=dict(lr=3e-4))
custom_hooks = [dict(type="EMAHook", momentum=0.01)]
max_epochs = 6
