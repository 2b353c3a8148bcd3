"""Settings of all tests."""

import os

# The tensors here are small: one thread is faster than two that wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
