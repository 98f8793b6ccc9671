"""Traces for people: a line per message, JSON, and summaries."""
