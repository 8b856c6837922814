"""GlobusComputeEngine: Parsl's HighThroughputExecutor, driven without its DataFlowKernel.

In the user endpoint, `executor` submits tasks and `blocks` starts, watches and ends scheduler jobs on a thread. In a
process beside it, `interchange` extends Parsl's to batches. On each node, `worker_pool` replaces Parsl's
process_worker_pool and runs tasks with the process pool engine. All of them run as the mapped user, and their traffic
is encrypted with keys that the user endpoint makes. Parsl is imported in this package alone.
"""
