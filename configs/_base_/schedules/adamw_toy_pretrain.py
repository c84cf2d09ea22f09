# The longer training of `make toy-pretrain`.
_base_ = "./adamw_toy.py"

max_epochs = 16

# bfloat16 on CPUs that multiply it (AMX, AVX512-BF16), float32 on others.
optim_wrapper = dict(type="AmpOptimWrapper", dtype="auto")
