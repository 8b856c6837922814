"""Measures MEP beside bare Parsl and ssh, in one run."""
