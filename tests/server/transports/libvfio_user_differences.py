"""The tests of the contract that state what libvfio-user does otherwise, each with the reason."""

BITMAP = "unmapping with a dirty bitmap needs the library's own dirty log, which it keeps for migration only"

DIFFERENCES = {
    "test_unmapping_says_what_was_written_up_to_then": BITMAP,
    "test_unmapping_reports_what_a_message_under_way_writes": BITMAP,
    "test_unmapping_reports_what_a_holder_wrote_in_the_time_that_it_asked_for": BITMAP,
    "test_unmapping_reports_what_no_report_has_had": BITMAP,
    "test_a_bitmap_that_is_longer_than_needed_is_padded": BITMAP,
    "test_no_reply_has_more_data_than_the_client_takes": BITMAP,
    "test_many_maps_of_one_file_take_one_fd": "the older generation of the library holds 16 DMA regions",
    "test_an_error_reply_is_a_header_alone": "the library leaves the payload that it had begun in an error reply",
    "test_a_region_that_does_not_exist_is_refused[9]": "the older generation has a region 9, for migration",
    "test_more_room_than_needed_is_not_filled": "the library refuses an argsz over its max_data_xfer_size",
}
"""By the test, which has to fail on libvfio-user: docs/transports.md lists the same for users."""
