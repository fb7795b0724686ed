"""One thread for the tests and the processes they start: on tiny tensors threads only wait for each other."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, which reads it once
