"""Types and instances of virtual GPUs, in the manner of mediated devices (mdevctl): ``docs/instances.md``."""
