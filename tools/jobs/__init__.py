"""Jobs side by side: what the demo, experiments, sweep and compare share.

``engine.py`` starts each job when those it needs are done, ``process.py`` runs
one, ``records.py`` keeps what is done, ``progress.py`` shows how far it is.
"""
