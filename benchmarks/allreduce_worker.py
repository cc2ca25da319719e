"""How long does an all-reduce between processes take? `scaling.py --processes` starts several of these workers.

    python benchmarks/allreduce_worker.py HOST:PORT PROCESSES NUMBER FLOATS

NUMBER is the worker's number from 0 on. Worker 0 prints a JSON list of two medians in seconds: of an all-reduce of
FLOATS float32 numbers from each process, and of one number.
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
    sharded = NamedSharding(mesh, PartitionSpec("data"))
    all_reduce = jax.jit(lambda x: x.sum(axis=0), out_shardings=NamedSharding(mesh, PartitionSpec()))
    medians = []
    for size in (floats, 1):
        ones = jax.make_array_from_process_local_data(sharded, np.ones((1, size), np.float32), (processes, size))
        jax.block_until_ready(all_reduce(ones))  # compiles
        seconds = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            jax.block_until_ready(all_reduce(ones))
            seconds.append(time.perf_counter() - start)
        medians.append(statistics.median(seconds))
    if number == 0:
        print(json.dumps(medians))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
