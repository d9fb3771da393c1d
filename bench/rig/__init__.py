"""What `agreement` and `upstream` measure on: one proxy and all around it, on all CPUs.

`stage` (starting and asking what takes part), `origin` (an endpoint that fails on command, and
knows when who came), `callgrind` (instructions), `rows` (flags -> rows in turn -> a file),
`figures` (what is computed from what was seen; pure).
"""
