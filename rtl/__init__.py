"""Hardware: the masked product's components in Amaranth, from skid buffer to accelerator."""
