"""Process of the mapped user: renders the template, starts an engine, runs tasks and returns results.

The keeper starts it by an absolute path, after root is gone. It trusts the sealed documents that it inherits and the
relay's link key; it trusts no value of the person's further than the schema and the template allow. No other package
may import it.
"""
