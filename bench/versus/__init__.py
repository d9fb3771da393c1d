"""Proxies against each other, in turn, on the same CPU, over the same origin.

In the order that a campaign meets them: `campaign` (flags, rounds), `scenario` (what is asked of a
proxy), `rivals` (who they are), `process` (starting, stopping, CPU time, memory), `measure` (one
measurement), `machine` (what it ran on), `results` (rows in a file), `complete` (what is missing),
`figures` (medians, ratios), `table`, `readme`.
"""
