from globus_compute_sdk import Executor

endpoint_id = "ENDPOINT_ID"
gce = Executor(endpoint_id=endpoint_id)

def hello_world(name):
    return f"Hello {name}"

future = gce.submit(hello_world, "World")

print(future.result()) # Hello World
