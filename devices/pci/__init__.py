"""PCI functions as VFIO devices: configuration space, BARs made of registers, MSI-X, MSI and INTx."""
