from globus_compute_sdk import Executor
from globus_compute_sdk import ShellFunction

# Command is formatted with kwargs when invoked
sf = ShellFunction("echo '{message}'")

with Executor(endpoint_id="ENDPOINT_ID") as ex:
    for msg in ["hello", "hola", "bonjour"]:
        future = ex.submit(sf, message=msg)
        shell_result = future.result()
        print(shell_result.stdout)
