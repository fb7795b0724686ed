"""One thread for the tests and the processes they start: on tiny tensors threads only wait for each other."""

import os
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, which reads it once
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="vidssl-tests-")  # what runs of own parts are noted in
