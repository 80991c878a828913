"""What all tests share: how often Python looks for garbage."""

import gc

# Amaranth makes millions of objects that live as long as a test
gc.set_threshold(100_000, 20, 20)
