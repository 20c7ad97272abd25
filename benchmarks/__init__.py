"""Every figure that the README quotes; each prints JSON as its last line."""
