"""What a screen says of itself to a driver: EDID for any mode, with a DisplayID extension where it takes one."""
