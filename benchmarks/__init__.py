"""Rates and speeds of aesz-codec against its peers, on the same arrays in one run (see README.md here)."""
