_base_ = [
    "../_base_/default_runtime.py",
    "../_base_/datasets/toy_occ3d.py",
    "../_base_/models/opusv1_nano.py",
    "../_base_/models/resnet18_nano.py",
    "../_base_/schedules/adamw_toy.py",
]

# No learned step removes voxels, so points must be more exact: three times V2's iterations.
max_epochs = 30
