"""What libvirt needs to know to give a domain a virtual GPU."""
