"""Replays a recorded session: does what its client did, and compares what the server does with what was recorded."""
