"""``vgpud serve --metrics``: a Prometheus endpoint. What it counts costs nothing per register access.

Counters that there are anyway are read when somebody scrapes; what is timed is a run of deferred work and a message
to the client, in :mod:`server.durations`.
"""
