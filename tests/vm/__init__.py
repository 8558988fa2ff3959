"""The installed service in virtual machines: Debian 12 with systemd, under two kernels."""
