"""The processes of the process engine: the fork server and the workers that it forks.

They run as the mapped user. The fork server trusts its engine alone; a worker runs people's code.
`user_endpoint.engines` may import it.

Standard library and mep_sdk's task runner only, since every import here is paid for in each worker's memory.
"""
