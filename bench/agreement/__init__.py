"""What the shards promise together, measured on the running binary.

In the order of a run: `campaign` (flags, rows, tables), `stage` (starting and asking what takes
part), `origin` (an endpoint that fails on command, and knows when who came), `limits`, `breakers`,
`cost` (the rows), `figures` (what is computed from what was seen; pure).
"""
