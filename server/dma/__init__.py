"""Guest memory: DMA regions, their backing files, and the GPA -> dma_addr cache over a DMA domain.

:class:`server.dma.memory.GuestMemoryMap` is what a session uses; :mod:`server.dma.domain` is what a new
kind of DMA address implements.
"""
