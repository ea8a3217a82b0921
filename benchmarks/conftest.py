"""One thread for everybody: the comparison is of methods."""

import os

# Small matrices gain nothing from threads inside BLAS.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
