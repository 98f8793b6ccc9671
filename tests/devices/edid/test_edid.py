import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.edid.edid import edid

SIDES = st.integers(64, 16384)


def detailed_timing(block: bytes) -> dict[str, int]:
    """The first 18-byte descriptor, by the layout of EDID 1.4, table 3.21."""
    d = block[54:72]
    return {
        "clock_10khz": d[0] | d[1] << 8,
        "h_active": d[2] | d[4] >> 4 << 8,
        "h_blank": d[3] | (d[4] & 15) << 8,
        "v_active": d[5] | d[7] >> 4 << 8,
        "v_blank": d[6] | (d[7] & 15) << 8,
        "h_front": d[8] | d[11] >> 6 << 8,
        "h_sync": d[9] | (d[11] >> 4 & 3) << 8,
        "v_front": d[10] >> 4 | (d[11] >> 2 & 3) << 4,
        "v_sync": d[10] & 15 | (d[11] & 3) << 4,
        "h_mm": d[12] | d[14] >> 4 << 8,
        "v_mm": d[13] | (d[14] & 15) << 8,
        "flags": d[17],
    }


def data_blocks(extension: bytes) -> dict[int, bytes]:
    """DisplayID data blocks by tag: from offset 5, a tag, a revision and a length each."""
    blocks = {}
    at = 5
    while at < 126 and any(extension[at:126]):
        length = extension[at + 2]
        blocks[extension[at]] = extension[at + 3 : at + 3 + length]
        at += 3 + length
    return blocks


def type_1_timing(extension: bytes) -> dict[str, int]:
    """A type I detailed timing, by the layout of DisplayID 1.3, table 4-14; values are stored less one."""
    d = data_blocks(extension)[3]
    words = [d[at] | d[at + 1] << 8 for at in range(4, 20, 2)]
    names = ("h_active", "h_blank", "h_front", "h_sync", "v_active", "v_blank", "v_front", "v_sync")
    timing = {name: (word & 0x7FFF) + 1 for name, word in zip(names, words, strict=True)}
    timing["clock_10khz"] = (d[0] | d[1] << 8 | d[2] << 16) + 1
    timing["preferred"] = d[3] >> 7
    timing["h_sync_positive"] = words[2] >> 15
    return timing


def text(block: bytes, tag: int) -> str:
    for at in range(54, 126, 18):
        if block[at : at + 3] == b"\0\0\0" and block[at + 3] == tag:
            return block[at + 5 : at + 18].decode().rstrip(" ").removesuffix("\n")
    raise AssertionError(f"no descriptor {tag:#x}")


@given(SIDES, SIDES, st.integers(0, 15))
def test_every_block_of_any_mode_adds_up_to_zero(width: int, height: int, screen: int) -> None:
    data = edid(width, height, screen)
    assert data[:8] == bytes.fromhex("00ffffffffffff00")
    assert len(data) == 128 * (1 + data[126])
    assert all(sum(data[at : at + 128]) % 256 == 0 for at in range(0, len(data), 128))
    if data[126]:
        assert sum(data[129:255]) % 256 == 0


@given(SIDES, SIDES)
def test_any_mode_is_the_preferred_one_at_75_hz(width: int, height: int) -> None:
    data = edid(width, height, 0)
    timing = type_1_timing(data[128:]) if data[126] else detailed_timing(data)
    assert (timing["h_active"], timing["v_active"]) == (width, height)
    total = (width + timing["h_blank"]) * (height + timing["v_blank"])
    # Clocks are rounded to 10 kHz.
    assert abs(timing["clock_10khz"] * 10_000 - 75 * total) <= 6_000
    assert timing["v_front"] == timing["v_blank"] - 8 - 6


def test_the_default_mode_is_what_edid_decode_reads() -> None:
    data = edid(1280, 800, 0)
    assert len(data) == 128
    assert data[18:20] == b"\x01\x04"
    # DTD 1: 1280x800 75.001774 Hz 84.560000 MHz (339 mm x 212 mm)
    #   Hfront 8 Hsync 32 Hback 40 Hpol P, Vfront 15 Vsync 8 Vback 6 Vpol N
    assert detailed_timing(data) == {
        "clock_10khz": 8456,
        "h_active": 1280,
        "h_blank": 80,
        "v_active": 800,
        "v_blank": 29,
        "h_front": 8,
        "h_sync": 32,
        "v_front": 15,
        "v_sync": 8,
        "h_mm": 339,
        "v_mm": 212,
        "flags": 0b11010,
    }
    assert (data[21], data[22]) == (34, 21)


def test_a_4k_mode_goes_into_a_displayid_block_and_the_base_block_has_it_at_60_hz() -> None:
    data = edid(3840, 2160, 0)
    assert data[128:130] == b"\x70\x13"
    timing = type_1_timing(data[128:])
    assert timing["clock_10khz"] == 65797
    assert (timing["preferred"], timing["h_sync_positive"]) == (1, 1)
    assert (timing["v_front"], timing["v_sync"], timing["v_blank"]) == (64, 8, 78)
    base = detailed_timing(data)
    assert (base["h_active"], base["v_active"], base["clock_10khz"]) == (3840, 2160, 52261)


@pytest.mark.parametrize(("width", "height"), [(5120, 2880), (4096, 600), (64, 16384), (16384, 16384)])
def test_where_no_rate_fits_the_base_block_it_has_1024_by_768(width: int, height: int) -> None:
    data = edid(width, height, 0)
    base = detailed_timing(data)
    assert (base["h_active"], base["v_active"]) == (1024, 768)
    timing = type_1_timing(data[128:])
    assert (timing["h_active"], timing["v_active"]) == (width, height)


def test_a_displayid_block_has_what_a_standalone_display_must_have() -> None:
    blocks = data_blocks(edid(3840, 2160, 2)[128:])
    assert list(blocks) == [0x00, 0x01, 0x0F, 0x03]
    assert [len(block) for block in blocks.values()] == [12, 12, 10, 20]
    assert blocks[0][:3] == b"VGP"
    assert blocks[0][5:9] == b"\x03\0\0\0"
    assert [blocks[1][at] | blocks[1][at + 1] << 8 for at in (0, 2, 4, 6)] == [10160, 5720, 3840, 2160]


def test_screens_of_one_device_are_told_apart_by_their_serial() -> None:
    first, third = edid(1280, 800, 0), edid(1280, 800, 2)
    assert first[8:12] == third[8:12]
    assert (first[12], third[12]) == (1, 3)
    assert (text(first, 0xFF), text(third, 0xFF)) == ("screen 0", "screen 2")
    assert text(first, 0xFC) == "Virtual GPU"


def test_the_vendor_is_three_letters_of_five_bits() -> None:
    word = int.from_bytes(edid(1280, 800, 0)[8:10], "big")
    assert "".join(chr((word >> shift & 31) + 64) for shift in (10, 5, 0)) == "VGP"


def test_smaller_standard_modes_are_offered_and_larger_ones_are_not() -> None:
    # Established: 640x480, 800x600 and 1024x768 at 60 Hz; standard: 1280x720 is 0x81 0xc0.
    small = edid(1280, 800, 0)
    assert small[35:38] == b"\x21\x08\x00"
    assert small[38:54] == b"\x81\xc0" + b"\x01\x01" * 7
    # 1680x1050, 1440x900, 1280x1024, 1280x960, 1280x720 fit into 1920x1080; itself and 1920x1200 are left out.
    assert edid(1920, 1080, 0)[38:54] == bytes.fromhex("b300 9500 8180 8140 81c0") + b"\x01\x01" * 3
    assert edid(640, 400, 0)[35:54] == b"\0\0\0" + b"\x01\x01" * 8


def test_a_size_that_does_not_fit_its_fields_is_unknown() -> None:
    data = edid(16384, 16384, 0)
    assert (data[21], data[22]) == (0, 0)
    assert (detailed_timing(data)["h_mm"], detailed_timing(data)["v_mm"]) == (0, 0)
