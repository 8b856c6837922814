"""System calls, spawn, signals, process trees, control groups, keeper records: the tools of all root processes.

This package is no process of its own; its code runs as root inside the others. It trusts only the kernel. Every
package of `mep.root` may import it.
"""
