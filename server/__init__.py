"""The vfio-user server: transports, sessions, the DMA core, and the command line."""
