"""Traces of vfio-user sessions: recorded, shown, compared, replayed, exported; :mod:`protocol.trace` is the format."""
