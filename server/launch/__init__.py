"""``vgpud run``: a QEMU command line gets a virtual GPU, and runs together with the server behind it."""
