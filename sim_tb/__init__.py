"""Golden model, simulators and test benches."""
