# The narrow image network and its first-hit head, from `make toy-pretrain`.
_base_ = "./resnet18_nano.py"

img_backbone = dict(
    init_cfg=dict(
        type="Pretrained", prefix="img_backbone.", checkpoint="pretrain/opusv2-nano_toy.pth"))
img_neck = dict(
    init_cfg=dict(type="Pretrained", prefix="img_neck.", checkpoint="pretrain/opusv2-nano_toy.pth"))
img_aux_head = dict(
    init_cfg=dict(
        type="Pretrained", prefix="img_aux_head.", checkpoint="pretrain/opusv2-nano_toy.pth"))
