"""Retries, balancing, and endpoints that die and come back, beside other proxies.

In the order of a run: `campaign` (flags, rows), `ways` (how each proxy is set up), `storm`,
`slow`, `dead`, `revived`, `defaults` (the rows), `tables`, `figures` (what is computed from what
was seen; pure). What they stand on is in `rig`.
"""
