"""Durable state of the relay: accounts, endpoints, functions, tasks, results.

It runs in the relay's one process, with one writer thread. It trusts its database file. Every package of `relay` may
import it.
"""
