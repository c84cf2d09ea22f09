"""Parts of scripts/gen_sweep_info.py: reading nuScenes tables and creating infos from them."""
