"""Traces for other programs, and what was on the screen."""
