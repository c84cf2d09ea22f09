"""Parts of scripts/check_data.py: findings, checks of info files and of the files in them."""
