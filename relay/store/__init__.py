"""Where the relay keeps everything that must outlive it: accounts, endpoints, functions, tasks, results."""
