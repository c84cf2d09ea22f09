# Occ3D without BEV flips: OPUS-V1 is published so.
_base_ = './nuscenes_occ3d.py'

train_dataloader = dict(dataset=dict(pipeline=[
    dict(type='DrawImageAug', raw_hw={{_base_.raw_hw}}, final_hw={{_base_.final_hw}},
         resize_range={{_base_.resize_range}}),
    dict(type='LoadMultiViewImages', raw_hw={{_base_.raw_hw}}, image_mode={{_base_.image_mode}}),
    dict(type='LoadOcc3DLabels'),
    dict(type='PackOccSample')]))
