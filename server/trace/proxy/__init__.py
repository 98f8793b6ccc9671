"""Stands between a client and a server, and records what they say."""
