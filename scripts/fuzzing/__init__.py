"""Parts of scripts/fuzz.py: cases that no input may turn into a crash or a foreign exception."""
