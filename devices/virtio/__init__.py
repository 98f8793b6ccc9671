"""Virtio devices: the modern PCI transport and split virtqueues (virtio 1.3)."""
