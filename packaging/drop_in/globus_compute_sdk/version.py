"""The version of Globus Compute's SDK that scripts may take this for, as they may ask for one."""

__version__ = "4.19.0"
