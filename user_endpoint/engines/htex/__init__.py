"""GlobusComputeEngine: Parsl's HighThroughputExecutor, driven without its DataFlowKernel.

It runs as the mapped user: in the user endpoint, in an interchange beside it, and on each node. It trusts Parsl, and
the holders of keys that the user endpoint makes. Only `user_endpoint.engines` may import it.

In the user endpoint, `executor` submits tasks and `blocks` starts, watches and ends scheduler jobs on a thread. In a
process beside it, `interchange` extends Parsl's to batches. On each node, `worker_pool` replaces Parsl's
process_worker_pool and runs tasks with the process pool engine. Their traffic is encrypted. Parsl
is imported in this package alone.
"""
