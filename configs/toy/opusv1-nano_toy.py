_base_ = [
    "../_base_/default_runtime.py",
    "../_base_/datasets/toy_occ3d.py",
    "../_base_/models/opusv1_nano.py",
    "../_base_/models/resnet18_nano.py",
    "../_base_/schedules/adamw_toy.py",
]

# Without a step that learns which voxels are free, points have to become exact: thrice V2's time.
max_epochs = 30
