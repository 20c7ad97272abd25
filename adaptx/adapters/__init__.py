"""Methods, bank, route, folder format."""
