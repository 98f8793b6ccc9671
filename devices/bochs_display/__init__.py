"""The Bochs display: a framebuffer and a few registers, for firmware and for drivers that know nothing better."""

from devices.bochs_display.device import BochsDisplay
from devices.bochs_display.options import BochsDisplayOptions

__all__ = ["BochsDisplay", "BochsDisplayOptions"]
