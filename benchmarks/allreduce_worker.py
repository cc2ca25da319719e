"""One of the processes between which `scaling.py --processes` measures an all-reduce.

`python benchmarks/allreduce_worker.py HOST:PORT PROCESSES NUMBER FLOATS`; process 0 prints the median seconds of an
all-reduce of so many numbers, and of one.
"""

import json
import statistics
import sys
import time

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

ROUNDS = 15


def main(address: str, processes: int, number: int, floats: int) -> None:
    jax.distributed.initialize(address, processes, number)
    mesh = Mesh(np.array(jax.devices()), ("data",), axis_types=(AxisType.Auto,))
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    add = jax.jit(lambda x: x.sum(axis=0), out_shardings=whole)
    medians = []
    for size in (floats, 1):
        mine = jax.make_array_from_process_local_data(split, np.ones((1, size), np.float32), (processes, size))
        jax.block_until_ready(add(mine))
        seconds = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            jax.block_until_ready(add(mine))
            seconds.append(time.perf_counter() - start)
        medians.append(statistics.median(seconds))
    if number == 0:
        print(json.dumps(medians))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
