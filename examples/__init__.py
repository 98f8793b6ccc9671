"""Devices to start from; docs/writing-a-device.md explains them."""
