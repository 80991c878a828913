"""FPGA boards: pins, clocks, builds and flashing."""
