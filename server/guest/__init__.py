"""Real guests: QEMU, a stock kernel and guest programs, and what it takes to boot them and talk to them."""
