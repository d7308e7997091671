"""For all tests, and the processes they start."""

import os

# Tiny tensors gain nothing from a second thread; waiting for one that shares its core costs a hundredfold.
os.environ["OMP_NUM_THREADS"] = "1"
