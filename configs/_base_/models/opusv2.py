# OPUS-V2: a learned step (CPD) discretizes points into voxels.
_base_ = "./opus.py"

model = dict(
    pts_bbox_head=dict(
        type="CPDHead",
        num_query=600,
        point_channels=32,
        score_thr=0.25,
        decoder=dict(num_refines=[8, 16, 32, 64, 128], num_points=4, sampling_pattern="prototype"),
        densifier=dict(type="CPDDensifier", pfn_channels=[64, 64]),
    )
)
