"""A vfio-user client: the other end of any vfio-user server's socket, for tests, benchmarks and the replayer.

    async with open_client(path) as client:
        info = await client.get_info()
        value = await client.region_read(PciRegion.CONFIG, 0, 4)

File descriptors: those that a caller sends stay the caller's, and may be closed when the call has returned; those
that come with a reply are the caller's, who closes them. What nobody took is closed with the client.
"""

from server.client.client import VfioUserClient, attach_client, open_client
from server.client.requests import ClientMemory, PendingReply, RemoteError

__all__ = ["ClientMemory", "PendingReply", "RemoteError", "VfioUserClient", "attach_client", "open_client"]
