from globus_compute_sdk import Executor
from globus_compute_sdk import MPIFunction

executor = Executor(endpoint_id="ENDPOINT_ID")
func = MPIFunction("hostname")

for n in range(1, 3):
    print(f'Ranks per node: {n}')
    executor.resource_specification = {
        "num_nodes": 2,
        "ranks_per_node": n,
    }
    future = executor.submit(func)
    mpi_result = future.result()
    print(mpi_result.stdout)
