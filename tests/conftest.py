"""One thread of arithmetic for all tests: results then repeat bit for bit, here and in child processes.

No test has a deadline for one generated example: on a busy machine that fails without saying anything.
"""

import os
import signal

from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

settings.register_profile("elpo", deadline=None)
settings.load_profile("elpo")

# A shell that starts the tests in the background makes them, and what they start, deaf to Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
