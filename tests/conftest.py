"""Settings of all tests."""

import os
import sys

from absl import logging as absl_logging

# The tensors here are small: one thread is faster than two that wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Hydra closes each handler of logging, and absl's closes its stream unless that is a standard one:
# here it would be the file of all captured output.
absl_logging.get_absl_handler().python_handler.stream = sys.__stderr__
