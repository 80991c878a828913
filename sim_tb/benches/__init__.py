"""Benches in cocotb: one body, run on Verilator and on Icarus Verilog (:mod:`maskwork.sim_tb.benches.runner`).

Only this package needs cocotb, which the optional dependencies "test" bring.
"""
