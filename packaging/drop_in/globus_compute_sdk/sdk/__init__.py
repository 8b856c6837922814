"""The modules that hold the names of globus_compute_sdk."""
