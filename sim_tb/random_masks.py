"""Random MASK commands, as :class:`~maskwork.sim_tb.random_programs.RandomProgram` puts them into its programs."""

from __future__ import annotations

import random

import numpy as np
from maskwork.gen.config import Config
from maskwork.gen.isa import COMMANDS, KIND_BLOCKS, MaskKind, Op, mask_has_payload
from maskwork.sim_tb.packets import Packet, Packets
from numpy.typing import NDArray

_MAKERS = (MaskKind.GREATER, MaskKind.MAGNITUDE, MaskKind.PRUNE, MaskKind.DROPOUT)


class RandomMasks:
    """Makes legal MASK packets, one after the other; it replays only what it has stored.

    Args:
        config: a configuration with a mask unit.
        chance: source of every choice.
        numbers: source of the values.
        faults: at times, packets that the accelerator answers with an ERROR: bad fields, data too short or too long,
            masks that do not fit their slot or are not there.
    """

    def __init__(self, config: Config, chance: random.Random, numbers: np.random.Generator, faults: bool = False):
        self.config = config
        self._chance, self._numbers, self._faults = chance, numbers, faults
        self._make = Packets(config)
        self._stored: dict[int, tuple[int, int] | None] = {}

    def packet(self) -> Packet:
        """The next command."""
        config, chance = self.config, self._chance
        kinds = [kind for kind in MaskKind if KIND_BLOCKS[kind] in config.blocks]
        held = [slot for slot, shape in self._stored.items() if shape]
        if not held:
            kinds = [kind for kind in kinds if kind != MaskKind.REPLAY] or kinds
        kind = chance.choice(kinds)
        most = 16 if kind == MaskKind.NORMS else 100
        length = chance.choice((1, 2, 8, 31, 32, 33, 64, chance.randint(1, most)))
        rows = chance.randint(1, max(1, 300 // length))
        slot = chance.randrange(config.mask_slots)
        if kind == MaskKind.REPLAY and held:
            slot = chance.choice(held)
            rows, length = self._stored[slot] or (rows, length)
        length = min(length, config.norm_channels) if kind == MaskKind.NORMS else length
        fits = rows * -(-length // 32) <= config.mask_depth
        store = kind in _MAKERS and "store" in config.blocks and (fits or self._faults) and chance.random() < 0.5
        values = int(kind in (MaskKind.NORMS, MaskKind.PROJECT) or chance.random() < 0.5)
        tag, seed = chance.randrange(256), chance.choice((1, 1 << 31, chance.randint(1, (1 << 32) - 1)))
        fields = {"tag": tag, "rows": rows, "length": length, "level": self._level(kind), "slot": slot,
                  "seed": seed, "store": int(store), "values": values}  # fmt: skip
        if store:
            self._stored[slot] = (rows, length) if fits else None
        matrix = self._matrix((rows, length)) if mask_has_payload(kind, values) else None
        packet = self._make.mask(kind, matrix, **fields)
        return self._broken(packet, fields) if self._faults and chance.random() < 0.4 else packet

    def _level(self, kind: MaskKind) -> int:
        chance, largest = self._chance, (1 << (self.config.a_width - 1)) - 1
        if kind == MaskKind.GREATER:
            return chance.choice((0, -1, -largest - 1, largest, chance.randint(-largest - 1, largest)))
        if kind == MaskKind.DROPOUT:
            return chance.choice((1, 65535, 32768, chance.randint(1, 65535)))
        return chance.choice((1, largest, chance.randint(1, largest), chance.randint(1, largest)))

    def _matrix(self, shape: tuple[int, int]) -> NDArray[np.int64]:
        low, high = -(1 << (self.config.a_width - 1)), (1 << (self.config.a_width - 1)) - 1
        if self._chance.random() < 0.2:
            return self._numbers.choice([low, high, 0], shape).astype(np.int64)
        values = self._numbers.integers(low, high + 1, shape)
        return np.where(self._numbers.random(shape) < self._chance.choice((0.1, 0.6, 1.0)), values, 0)

    def _broken(self, packet: Packet, fields: dict[str, int]) -> Packet:
        """The packet with something wrong, as a rule."""
        chance, beat, layout = self._chance, self.config.stream_words, COMMANDS[Op.MASK]
        head = layout.beats(beat) * beat
        what = chance.choice(("short", "short", "long", "field", "shape", "empty"))
        broken = packet
        if what == "long":
            broken = packet + [chance.getrandbits(32) for _ in range(beat * chance.randint(1, 3))]
        elif what == "short" and len(packet) > head:
            broken = packet[: head + chance.randrange(0, len(packet) - head, beat)]
        if what in ("field", "shape", "empty") and fields["store"]:
            del self._stored[fields["slot"]]  # it may hold what it held before
        if what == "field":
            changes = ({"length": 0}, {"rows": 0}, {"kind": 7}, {"seed": 0}, {"level": -(1 << 17)}, {"level": 0})
            header = {**layout.decode(packet), **chance.choice(changes)}
            return self._make.command(Op.MASK, **header) + packet[head:]
        elif what == "shape":  # of a replay: MASK_EMPTY; of others, the data become too long or too short
            header = {**layout.decode(packet), "rows": fields["rows"] + 1, "store": 0}
            return self._make.command(Op.MASK, **header) + packet[head:]
        elif what == "empty" and "store" in self.config.blocks:
            slot = chance.randrange(self.config.mask_slots)
            if slot in self._stored:
                rows, length = self._stored[slot] or (1, 1)
                header = {"rows": rows + bool(self._stored[slot]), "length": length, "slot": slot}
                return self._make.mask(MaskKind.REPLAY, None, **header)
            return self._make.mask(MaskKind.REPLAY, None, rows=1, length=0)
        if broken is not packet and fields["store"]:
            self._stored[fields["slot"]] = None
        return broken
