# The nano model with a longer schedule: under an hour on two cores (`make toy-train`).
_base_ = ["./opusv2-nano_toy.py"]

train_dataloader = dict(dataset=dict(pipeline={{_base_.train_pipeline}}))  # with BEV flips
max_epochs = 75
