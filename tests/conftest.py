"""Set before torch is imported, here and in the processes that tests start."""

import os

# The models are tiny: a second thread takes a core from the neighbouring test process and gives nothing back.
os.environ.setdefault("OMP_NUM_THREADS", "1")
