"""A virtual GPU for a guest that runs already: plugged in and unplugged through QEMU's control protocol, QMP."""
