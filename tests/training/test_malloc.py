"""Freed memory is kept."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from ddp_ft.training.malloc import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit(9)
import numpy as np
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        layers = [np.ones(3_000_000, dtype=np.float32) for _ in range(8)]  # 12 MB each
        del layers
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def page_faults(mode):
    done = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, timeout=60)
    if done.returncode == 9:
        pytest.skip("this C library cannot be told")
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="for glibc")
def test_the_second_use_of_large_memory_costs_no_page_faults():
    assert page_faults("keep") < 1000 < page_faults("as it is")
