from globus_compute_sdk import Executor

def hello_world():
    import os
    return "Hello " + os.environ["ALLOCATION"]

uep_conf = {
    "NODES_PER_BLOCK": 64,
    "ACCOUNT_ID": "314159265",
    "WALLTIME": "00:20:00"
}
with Executor(endpoint_id="ENDPOINT_ID") as gce:
    gce.user_endpoint_config = uep_conf
    fut = gce.submit(hello_world)
    res = fut.result()
    print(res)
