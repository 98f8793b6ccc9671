import pytest

from devices.display import PixelLayout
from devices.virtio_gpu.formats import DRM_NAMES, LAYOUTS, OPAQUE

from .guest import ABGR, ARGB, BAD_PARAMETER, BGRA, BGRX, OK, RGBA, RGBX, XBGR, XRGB, Guest

# The pairs of virtio_gpu_translate_format() in Linux, on a little-endian machine.
LINUX = {
    "XRGB8888": BGRX,
    "ARGB8888": BGRA,
    "BGRX8888": XRGB,
    "BGRA8888": ARGB,
    "RGBX8888": XBGR,
    "RGBA8888": ABGR,
    "XBGR8888": RGBX,
    "ABGR8888": RGBA,
}


def test_drm_names_are_those_that_linux_translates() -> None:
    assert {name: number for number, name in DRM_NAMES.items()} == LINUX


def test_a_layout_is_a_drm_name_backwards() -> None:
    # DRM names a little-endian word from its highest byte, a layout names bytes from the first.
    for number, layout in LAYOUTS.items():
        assert layout.value == DRM_NAMES[number].removesuffix("8888")[::-1]


def test_opaque_layouts_have_the_colours_where_they_were() -> None:
    assert set(OPAQUE) == set(PixelLayout)
    for layout, opaque in OPAQUE.items():
        assert opaque.value == layout.value.replace("A", "X")


@pytest.mark.parametrize("pixel_format", LINUX.values())
def test_all_eight_formats_make_resources_that_are_captured_in_their_byte_order(pixel_format: int) -> None:
    guest = Guest()
    guest.show(1, width=4, height=4, pixel_format=pixel_format)
    name = next(name for name, number in LINUX.items() if number == pixel_format)
    assert guest.capture().buffer.layout.value == name[:4][::-1].replace("A", "X")


@pytest.mark.parametrize("pixel_format", [0, 5, 66, 69, 120, 122, 133, 135, 0xFFFFFFFF])
def test_other_formats_are_an_invalid_parameter(pixel_format: int) -> None:
    assert Guest().create_2d(1, pixel_format=pixel_format) == BAD_PARAMETER
    assert Guest().create_2d(1, pixel_format=BGRA) == OK
