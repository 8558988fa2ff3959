"""What the measured curves imply for a large host and for a fleet, as a page with pictures."""
