from globus_compute_sdk import Executor

# First, define the function ...
def add_func(a, b):
    return a + b

# Paste your endpoint id here
endpoint_id = 'ENDPOINT_ID'

# ... then create the executor, ...
with Executor(endpoint_id=endpoint_id) as gce:
    # ... then submit for execution, ...
    future = gce.submit(add_func, 5, 10)

    # ... and finally, wait for the result
    print(future.result())
