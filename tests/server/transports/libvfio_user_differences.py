"""The tests of the contract that state what libvfio-user does otherwise, each with the reason."""

DIFFERENCES = {
    "test_many_maps_of_one_file_take_one_fd": "the library keeps an fd of each DMA region that it holds",
    "test_an_error_reply_is_a_header_alone": "the library leaves the payload that it had begun in an error reply",
}
"""By the test, which has to fail on libvfio-user: docs/transports.md lists the same for users."""
