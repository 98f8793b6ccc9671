"""The native transport: vfio-user on a UNIX socket, with the project's own protocol engine."""
