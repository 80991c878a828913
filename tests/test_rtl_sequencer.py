"""Simulator tests of the sequencer: the pace of headers, their words with and without stalls, packets at fault."""

import random
from itertools import pairwise

import pytest
from maskwork.gen.config import Config
from maskwork.gen.isa import COMMANDS, ISA_VERSION, Op, Reply
from maskwork.rtl.sequencer import Sequencer

from .contract import simulate

RUN_WORDS = COMMANDS[Op.RUN].words
HEAD = 3
"""Cycles of a packet beside a cycle for each header word: its first word's, its opcode's and its check's, of a RUN."""


def packet(config, words):
    """Beats of a packet, and whether they are its last."""
    words = [*words, *[0] * (-len(words) % config.stream_words)]
    beats = [words[at : at + config.stream_words] for at in range(0, len(words), config.stream_words)]
    return [
        (sum(word << 32 * n for n, word in enumerate(beat)), number == len(beats) - 1)
        for number, beat in enumerate(beats)
    ]


def run_words(rng):
    """A RUN of cluster 0 that the check has nothing against, with rubbish in the words that it does not look at."""
    run = COMMANDS[Op.RUN]
    words = [0] * run.words
    fields = {"clusters": 1, "rows": 1, "first": 1, "final": 1}
    for name, value in fields.items():
        field = run.field(name)
        words[field.word] |= value << field.lsb
    words[0] |= Op.RUN
    return words[:4] + [rng.getrandbits(32) for _ in words[4:]]


def ordered(config, packets, idle=0.0, seed=0):
    """What the sequencer did with the packets: events (cycle, name, value), behind a BEGIN; replies are words."""
    dut = Sequencer(config)
    rng = random.Random(seed)
    beats = [*packet(config, [Op.BEGIN, ISA_VERSION, config.hash])]
    beats += [beat for each in packets for beat in each]
    events = []

    async def body(ctx):
        ctx.set(dut.idle, -1)
        ctx.set(dut.run_space, -1)
        ctx.set(dut.loaded, [{"a": 3, "b": 3, "c": 3, "p": 3}])
        ctx.set(dut.o.ready, 1)
        ctx.set(dut.load_done, 0)
        at, quiet, cycle = 0, 0, 0
        while quiet < 40:
            if at < len(beats) and not ctx.get(dut.i.valid) and rng.random() >= idle:
                ctx.set(dut.i.payload.data, beats[at][0])
                ctx.set(dut.i.payload.last, beats[at][1])
                ctx.set(dut.i.valid, 1)
            signals = (dut.i.valid, dut.i.ready, dut.run_we, dut.run_word, dut.run_commit, dut.run_cancel, dut.clear,
                       dut.load_start, dut.o.valid, dut.o.payload.word)  # fmt: skip
            sampled = await ctx.tick().sample(*signals)
            valid, ready, we, word, commit, cancel, clear, start, answers, reply = sampled[2:]
            before = len(events)
            events.extend(
                (cycle, name, value)
                for name, happens, value in (("word", we, word), ("commit", commit, 0), ("cancel", cancel, 0),
                                             ("clear", clear, 0), ("load", start, 0), ("reply", answers, reply))
                if happens
            )  # fmt: skip
            ctx.set(dut.load_done, start)
            if valid and ready:
                at += 1
                ctx.set(dut.i.valid, 0)
            quiet = 0 if len(events) > before or at < len(beats) else quiet + 1
            cycle += 1

    simulate(dut, body, watched=False)  # its loads take nothing of their payload
    return events


def only(events, *names):
    return [(name, value) for _, name, value in events if name in names]


@pytest.mark.parametrize("words", [1, 2, 4, 8])
def test_a_run_takes_a_cycle_a_word(words):
    """RUNs that follow each other take a cycle for each of their words, and three more."""
    config, rng = Config(stream_words=words, lanes=1, lanes_per_cluster=1), random.Random(words)
    runs = [run_words(rng) for _ in range(4)]
    events = ordered(config, [packet(config, run) for run in runs])
    commits = [cycle for cycle, name, _ in events if name == "commit"]
    assert {later - sooner for sooner, later in pairwise(commits)} == {RUN_WORDS + HEAD}
    assert only(events, "word", "cancel") == [("word", word) for run in runs for word in run]


@pytest.mark.parametrize("words", [1, 2, 4, 8])
def test_headers_with_stalls(words):
    """Stalls in the stream change nothing but time; a packet that ends in its header takes nothing of the next one."""
    config, rng = Config(stream_words=words, lanes=1, lanes_per_cluster=1), random.Random(words)
    packets, expected = [], []
    for number in range(12):
        run = run_words(rng)
        if number % 3 == 1 and words < RUN_WORDS - words:
            short = run[: words * rng.randint(1, (RUN_WORDS - 1) // words)]
            packets.append(packet(config, short))
            expected += [("word", word) for word in short]
            expected += ["cancel"]
        elif number % 3 == 2:
            echo = [Op.ECHO, rng.getrandbits(32)][: COMMANDS[Op.ECHO].words]
            packets.append(packet(config, echo))
            expected += [Reply.ECHOED]
        else:
            packets.append(packet(config, run))
            expected += [*(("word", word) for word in run), ("commit", 0)]
    for idle in (0.0, 0.5):
        got = []
        for _, name, value in ordered(config, packets, idle, seed=words):
            if name in ("word", "commit"):
                got.append((name, value))
            elif name == "cancel" and got[-1:] != ["cancel"]:
                got.append("cancel")
            elif name == "reply" and value & 0xFF == Reply.ECHOED and value >> 8 == 0:
                got.append(Reply.ECHOED)
        assert got == expected


def test_a_load_starts_soon():
    """A LOAD_A starts 8 cycles after its first beat came, and the next packet is looked at 5 cycles after its end."""
    config = Config(stream_words=4, lanes=1, lanes_per_cluster=1)
    load = COMMANDS[Op.LOAD_A]
    words = [0] * load.words
    for name, value in {"clusters": 1, "segments": 1, "length": 1}.items():
        words[load.field(name).word] |= value << load.field(name).lsb
    words[0] |= Op.LOAD_A
    events = ordered(config, [packet(config, words), packet(config, [Op.SYNC])])
    times = {name: cycle for cycle, name, _ in events if name in ("clear", "load", "reply")}
    assert times["load"] - times["clear"] == load.words + 5
    assert times["reply"] - times["load"] == 12
