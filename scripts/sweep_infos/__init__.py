"""Parts of scripts/gen_sweep_info.py: reading nuScenes tables, making infos of them."""
