"""Freed memory stays with the process: a step's scratch memory costs page faults once, not every time."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from flaxresnet.memory import keep_freed_memory
kept = len(sys.argv) > 1 and keep_freed_memory()
import jax, jax.numpy as jnp
program = jax.jit(lambda x: jnp.sort(x) @ jnp.cumsum(x))  # its scratch memory is 48 MiB
x = jax.block_until_ready(jnp.ones(6 * 2**20))
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    jax.block_until_ready(program(x))
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(*arguments):
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True)
    kept, faults = map(int, done.stdout.split())
    return bool(kept), faults


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator is that of Linux")
def test_the_scratch_memory_of_a_program_is_kept():
    _, before = page_faults()
    kept, after = page_faults("keep")
    if not kept:
        pytest.skip("this C library has no mallopt")
    assert after < before / 2  # sorting has scratch memory of its own
