"""One image file, or its bytes, to an upright RGB picture."""
