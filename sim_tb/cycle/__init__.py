"""The cycle model: cycles and stall breakdown of a program, exactly those of the RTL, at many times its speed."""

from maskwork.sim_tb.cycle.device import CycleDevice, simulate_program
from maskwork.sim_tb.cycle.engine import simulate

__all__ = ["CycleDevice", "simulate", "simulate_program"]
