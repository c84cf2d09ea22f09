"""Parts of scripts/check_data.py: findings, checks of info files, checks of the files they name."""
