"""`make faults` and `make soak`: faults and long loads on a real relay and a real endpoint, as root."""
