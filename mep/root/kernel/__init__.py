"""System calls, spawn, signals, process trees and keeper records: the tools that all root processes share.

This package is no process of its own; its code runs as root inside the others. It trusts only the kernel. Every
package of `mep.root` may import it.
"""
