"""What GlobusComputeEngine is made of: Parsl's HighThroughputExecutor, with three parts of our own around it.

In the user endpoint `client` (the executor, driven without Parsl's DataFlowKernel) and `blocks` (starts, watches
and ends scheduler jobs, on a thread); in a process beside it `interchange` (Parsl's, taught to speak in batches);
on each node `pool` (takes the place of Parsl's process_worker_pool, and runs tasks with ProcessPoolEngine).
All of them run as the mapped user, and what travels between them is encrypted with keys that the user endpoint
makes for itself. Parsl is imported in here and nowhere else.
"""
