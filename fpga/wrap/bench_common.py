"""What the benches of both buses do: a random program through the wrapper, against the golden model."""

from __future__ import annotations

import random
from collections.abc import Sequence

from maskwork.gen.config import Config
from maskwork.sim_tb.benches.bench_accelerator import Replies, _check_counters, _unordered
from maskwork.sim_tb.golden import Interpreter
from maskwork.sim_tb.packets import Packet, joined
from maskwork.sim_tb.random_programs import RandomProgram


class ProgramBench:
    """A bus's bench sends packets and collects replies by :meth:`send`.

    Members:
        config: the accelerator's.
        chance: of the programs.
    """

    config: Config
    chance: random.Random

    async def send(self, packets: Sequence[Packet], count: int) -> Replies:
        """Send packets and wait for so many reply packets."""
        raise NotImplementedError

    async def check_program(self) -> int:
        """A random program must answer what the golden model does. Returns the number of its reply packets."""
        program = RandomProgram(self.config, self.chance, runs=2)
        golden = Interpreter(self.config).execute(*joined(self.config, program.packets))
        ours = await self.send(program.packets, len(golden))
        assert _unordered(self.config, ours, program.shared) == _unordered(self.config, golden, program.shared)
        if self.config.counters:
            _check_counters(self.config, ours[-1])
        return len(ours)
