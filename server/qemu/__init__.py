"""What a virtual GPU is in QEMU, whether it is there from the start or comes later."""
