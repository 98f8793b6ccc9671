"""Screens of a running server: listed, resized, plugged in and pulled out through its control socket."""
