"""Parts of tools/sweep.py, each runnable without the others."""
