"""Device models and the contract between a device and whatever hosts it.

Imports nothing of ``server``; see ``docs/writing-a-device.md``.
"""
