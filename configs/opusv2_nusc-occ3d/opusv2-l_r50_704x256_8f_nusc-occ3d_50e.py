_base_ = "./opusv2-l_r50_704x256_8f_nusc-occ3d_100e.py"

max_epochs = 50
