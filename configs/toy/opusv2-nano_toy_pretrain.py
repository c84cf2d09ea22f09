# The nano model on other scenes than the demo's (`make toy-pretrain`): 240 for training and 60 for
# validation, in varied lighting.
_base_ = ["./opusv2-nano_toy.py"]

data_root = "data/toy_pretrain"
version = "v1.0-trainval"
bev_flip_prob = 0.5
max_epochs = 16

# bfloat16 on CPUs that multiply it (AMX, AVX512-BF16), float32 on others.
optim_wrapper = dict(type="AmpOptimWrapper", dtype="auto")
