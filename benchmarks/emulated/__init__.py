"""An emulated board: Debian for arm64 in a folder (qemu-user) and as a machine that boots (qemu-system)."""
