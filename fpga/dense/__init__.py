"""A dense systolic array, and the comparison with it on the same device."""
