"""Training on the array: the products of the three passes, their numerics, and steps of whole networks."""
