"""FPGA synthesis and board support."""
