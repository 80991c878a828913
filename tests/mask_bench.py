"""Bench of the mask unit alone, and its replies in plain Python from the formulas of docs/isa.md."""

import random

from maskwork.gen.isa import MaskKind
from maskwork.rtl.load_common import LoadEnd
from maskwork.rtl.mask_unit import MaskUnit

from .contract import simulate, ticks, watch

MADE = (MaskKind.DROPOUT, MaskKind.REPLAY)


def states(seed):
    """States of the random sequence: bit i of a state is bit n + i of the sequence, n moves by 24 a value."""
    bits = [seed >> n & 1 for n in range(32)]
    while True:
        yield sum(bit << n for n, bit in enumerate(bits))
        for _ in range(24):
            bits = [*bits[1:], bits[0] ^ bits[2] ^ bits[6] ^ bits[7]]


def rotated(seed, bits):
    return (seed << bits | seed >> (32 - bits)) & 0xFFFFFFFF


def packed(values, width):
    per_word = max(1, 32 // width)
    fields = [value & ((1 << width) - 1) for value in values]
    groups = [fields[n : n + per_word] for n in range(0, len(fields), per_word)]
    return [sum(field << width * n for n, field in enumerate(group)) for group in groups]


def bitmap(bits):
    return [sum(bit << n for n, bit in enumerate(bits[at : at + 32])) for at in range(0, len(bits), 32)]


def beats(words, stream_words):
    words = words + [0] * (-len(words) % stream_words)
    return [sum(word << 32 * n for n, word in enumerate(words[at : at + stream_words]))
            for at in range(0, len(words), stream_words)]  # fmt: skip


def given(config, words):
    """The values that a payload's words hold."""
    width = config.a_width
    fields = [word >> width * n & ((1 << width) - 1) for word in words for n in range(max(1, 32 // width))]
    return [field - (field >> (width - 1) << width) for field in fields]


def has_payload(c):
    return c["values"] or c["kind"] not in MADE


class Reference:
    """What the unit must answer, command by command."""

    def __init__(self, config):
        self.config = config
        self.slots = {}

    def lacking(self, c):
        return (c["slot"] not in self.slots) or self.slots[c["slot"]][:2] != (c["length"], c["rows"])

    def reply(self, c, words=()):
        """Words, end and overflow; ``words``: those of the packet behind its header, whole beats."""
        length, total = c["length"], c["length"] * c["rows"]
        payload, end = given(self.config, words)[:total], LoadEnd.GOOD
        if has_payload(c):
            needed = len(beats(packed([0] * total, self.config.a_width), self.config.stream_words))
            sent = len(words) // self.config.stream_words
            if len(payload) < total:
                end = LoadEnd.SHORT
            elif sent > needed:
                end = LoadEnd.LONG
        else:
            end = LoadEnd.GOOD if not words else LoadEnd.LONG
            payload = [0] * total
        count = len(payload)
        if end == LoadEnd.SHORT:
            payload.append(0)
        matrix = [payload[at : at + length] for at in range(0, len(payload), length)]
        answer, overflowed = self._words(c, matrix, payload[:count], end)
        return answer, end, overflowed

    def _words(self, c, matrix, payload, end):
        config, kind, level = self.config, c["kind"], c["level"]
        if kind == MaskKind.NORMS:
            columns = [[row[n] for row in matrix if n < len(row)] for n in range(len(matrix[0]))]
            sums = [sum(map(abs, column)) for column in columns]
            counts = [sum(value != 0 for value in column) for column in columns]
            return [word for s, n in zip(sums, counts, strict=True)
                    for word in (s & 0xFFFFFFFF, n | s >> 32 << 16)], False  # fmt: skip
        if kind == MaskKind.PROJECT:
            signs = [list(self._signs(c["seed"], t, c["length"])) for t in range(config.project_sums)]
            return [sum(r * x for r, x in zip(sign, row, strict=False)) & 0xFFFFFFFF
                    for row in matrix for sign in signs], False  # fmt: skip
        sequence = states(c["seed"])
        outputs, masks = [], []
        if kind == MaskKind.REPLAY:
            stored = self.slots[c["slot"]][2]
        if kind == MaskKind.DROPOUT:
            kept = [(s & 0xFFFF) < level for s, _ in zip(sequence, range(c["length"]), strict=False)]
        for number, row in enumerate(matrix):
            if kind == MaskKind.GREATER:
                mask, out = [x > level for x in row], row
            elif kind == MaskKind.MAGNITUDE:
                mask, out = [abs(x) >= level for x in row], row
            elif kind == MaskKind.PRUNE:
                out = []
                for x in row:
                    u = next(sequence) & 0xFFFF
                    small = level * u < abs(x) << 16
                    out.append(x if abs(x) >= level else (level if x > 0 else -level) if small else 0)
                mask = [x != 0 for x in out]
            else:
                mask, out = (kept if kind == MaskKind.DROPOUT else stored[number]), row
            out = [x if keep else 0 for x, keep in zip(out, mask, strict=False)]
            if has_payload(c):
                mask = [x != 0 for x in out]
            outputs += out
            masks.append([int(keep) for keep in mask[: len(out)]])
        bitmaps = [word for mask in masks for word in bitmap(mask)]
        overflowed = bool(c["store"]) and len(bitmaps) > config.mask_depth
        if c["store"]:
            self.slots.pop(c["slot"], None)
            if end == LoadEnd.GOOD and not overflowed:
                self.slots[c["slot"]] = c["length"], c["rows"], masks
        words = packed(outputs, config.a_width) if c["values"] else bitmaps
        words += [0] * (-len(words) % config.stream_words)
        total = sum(map(abs, payload))
        words += [total & 0xFFFFFFFF, total >> 32, sum(map(sum, masks)), sum(x != 0 for x in payload)]
        return words, overflowed

    def _signs(self, seed, t, count):
        sequence = states(rotated(seed, 8 * (t // 4)))
        for _, state in zip(range(count), sequence, strict=False):
            symbol = state >> 6 * (t % 4) & 63
            yield 1 if symbol < 11 else -1 if symbol < 22 else 0


def command(kind, length, rows, **fields):
    return {"kind": kind, "length": length, "rows": rows, "values": 1, "store": 0, "slot": 0, "level": 1, "seed": 1,
            **fields}  # fmt: skip


def run_unit(config, commands, idle=0.0, stall=0.0, seed=0, cycles=200_000):
    """Runs commands, each with its payload's words (whole beats). The command None is a ``clear``.

    Answers, for each, words, end and overflow, or None for a REPLAY whose mask is lacking.
    """
    dut, rng, answers = MaskUnit(config), random.Random(seed), []

    async def process(ctx):
        for c, words in commands:
            if c is None:
                ctx.set(dut.clear, 1)
                await ctx.tick()
                ctx.set(dut.clear, 0)
                continue
            ctx.set(dut.command, c)
            await ticks(ctx, 6)
            if c["kind"] == MaskKind.REPLAY and ctx.get(dut.lacking):
                answers.append(None)
                continue
            await ticks(ctx, 1)
            waiting = beats(list(words), config.stream_words)
            ctx.set(dut.start, 1)
            ctx.set(dut.ended, not waiting)
            await ctx.tick()
            ctx.set(dut.start, 0)
            got, offered = [], False
            while True:
                offered = bool(waiting) and (offered or rng.random() >= idle)
                ctx.set(dut.i.valid, offered)
                if offered:
                    ctx.set(dut.i.payload, {"data": waiting[0], "last": len(waiting) == 1})
                ctx.set(dut.o.ready, rng.random() >= stall)
                _, _, taken, valid, ready, o, end, overflowed = await ctx.tick().sample(
                    dut.i.ready, dut.o.valid, dut.o.ready, dut.o.payload, dut.end, dut.overflowed
                )
                if taken and offered:
                    waiting.pop(0)
                    offered = False
                if valid and ready:
                    got.append(o.word)
                    if o.last:
                        break
            ctx.set(dut.i.valid, 0)
            ctx.set(dut.o.ready, 0)
            answers.append((got, LoadEnd(end), bool(overflowed)))

    simulate(dut, process, watched=False, background=[lambda ctx: watch(ctx, dut.o, "o")], cycles=cycles)
    return answers


def check_unit(config, commands, **bench):
    """Runs commands and compares every answer with the reference."""
    answers = iter(run_unit(config, commands, **bench))
    reference = Reference(config)
    for c, words in commands:
        if c is None:
            reference.slots.clear()
            continue
        answer = next(answers)
        if c["kind"] == MaskKind.REPLAY and reference.lacking(c):
            assert answer is None, c
            continue
        assert answer == reference.reply(c, list(words)), (c, len(words))
    assert next(answers, None) is None
