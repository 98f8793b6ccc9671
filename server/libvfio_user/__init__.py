"""libvfio-user through ctypes: the library's binding, and the transport that serves clients with it."""
