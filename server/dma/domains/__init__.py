"""What a dma_addr is: one file per kind of DMA domain, and :mod:`.registry`, which names them."""
