# `make toy-train` from the image network and the first-hit head of `make toy-pretrain`; decoder and
# head start from scratch.
_base_ = ["./opusv2-nano_toy_long.py"]

img_backbone = dict(
    init_cfg=dict(
        type="Pretrained", prefix="img_backbone.", checkpoint="pretrain/opusv2-nano_toy.pth"))
img_neck = dict(
    init_cfg=dict(type="Pretrained", prefix="img_neck.", checkpoint="pretrain/opusv2-nano_toy.pth"))
img_aux_head = dict(
    init_cfg=dict(
        type="Pretrained", prefix="img_aux_head.", checkpoint="pretrain/opusv2-nano_toy.pth"))
