"""What the shards promise together, measured on the running binary.

In the order of a run: `campaign` (flags, rows, tables), `limits`, `breakers`, `cost` (the rows).
What they stand on is in `rig`.
"""
