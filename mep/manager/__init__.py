"""Process mep-manager: holds the link to the relay and forwards start requests to the monitor.

It runs as `manager_account`. It trusts the monitor and nothing that the relay sends. No other package may import it.
"""
