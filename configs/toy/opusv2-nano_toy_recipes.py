# The base of the comparisons of recipes (docs/recipes.md): the nano model from the image network of
# `make toy-pretrain`, on scenes that neither that training nor the demo has. Decoder and head start
# from scratch.
_base_ = ["./opusv2-nano_toy.py"]

data_root = "data/toy_recipes"
version = "v1.0-trainval"
bev_flip_prob = 0.5
max_epochs = 4

optim_wrapper = dict(type="AmpOptimWrapper", dtype="bfloat16")

img_backbone = dict(
    init_cfg=dict(
        type="Pretrained", prefix="img_backbone.", checkpoint="pretrain/opusv2-nano_toy.pth"))
img_neck = dict(
    init_cfg=dict(type="Pretrained", prefix="img_neck.", checkpoint="pretrain/opusv2-nano_toy.pth"))
img_aux_head = dict(
    init_cfg=dict(
        type="Pretrained", prefix="img_aux_head.", checkpoint="pretrain/opusv2-nano_toy.pth"))
