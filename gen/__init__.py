"""Configuration, instruction set, compiler, generator and command line."""
