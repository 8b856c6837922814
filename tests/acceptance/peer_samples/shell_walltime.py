from globus_compute_sdk import Executor
from globus_compute_sdk import ShellFunction

executor = Executor(endpoint_id="ENDPOINT_ID")
sf = ShellFunction("sleep 2", walltime=1)
future = executor.submit(sf)
print(future.result().returncode) # Returns 124
