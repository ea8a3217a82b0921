import os

# Small matrices everywhere: threads inside BLAS only wait for each other (see kstream/cli/__init__.py).
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
