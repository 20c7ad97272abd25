"""Load a frozen encoder, find its sites, fingerprint it."""
