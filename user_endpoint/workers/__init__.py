"""The processes of the process engine: the fork server and the workers that it forks.

Standard library and mep_sdk's task runner only, since every import here is paid for in each worker's memory.
"""
