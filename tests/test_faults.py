"""Faults on the simulated netlist and on the golden model alike; after each, a good program runs right."""

import random

import numpy as np
import pytest
from maskwork.gen.isa import COMMANDS, ISA_VERSION, KIND_BLOCKS, Fault, MaskKind, Op, Reply, commands_of
from maskwork.sim_tb.device import GoldenDevice, RtlDevice
from maskwork.sim_tb.packets import Machine, Packets, decode, faults, joined
from maskwork.sim_tb.random_programs import RandomProgram
from maskwork.sim_tb.run import RunLimits, limits_for

from .variants import CONFIGS as VARIANTS

pytestmark = pytest.mark.slow

NAMES = "abc-1-2", "abc-4-2", "ab-2-2", "shared weights, b", "ac-4-4"
CONFIGS = {name: VARIANTS[name] for name in NAMES}
every_config = pytest.mark.parametrize("name", CONFIGS)
LIMITS = RunLimits(idle_limit=3000, stuck_limit=20_000)


@pytest.fixture(scope="module", params=CONFIGS)
def device(request):
    rtl = RtlDevice(CONFIGS[request.param], limits=LIMITS)
    yield rtl
    rtl.close()


def good_program(make):
    """Packets of a product over all clusters and lanes, from BEGIN to SYNC."""
    rng = np.random.default_rng(4)
    clusters = (1 << make.config.clusters) - 1
    a, b = rng.integers(-8, 8, (6, 20)), rng.integers(-200, 200, (20, 10))
    return [make.begin_packet(), make.load_a(a, clusters=clusters), make.load_b(b, clusters=clusters),
            make.load_c(rng.random((6, 10)) < 0.5, clusters=clusters),
            make.run(6, 10, clusters=clusters, row_words=30, use_c=1, tag=1), make.command(Op.SYNC, tag=9)]  # fmt: skip


def summary(replies):
    """Replies in a form that does not depend on lanes and order of rows (results sorted; others stay in order)."""
    results = sorted((r["tag"], r["row"], r["post"], tuple(r["columns"])) for r in replies if "columns" in r)
    others = [{k: v for k, v in r.items() if r["reply"] != Reply.COUNTERS or k == "reply"} for r in replies
              if "columns" not in r]  # fmt: skip
    return results, others


def check_good_program(device):
    make = Packets(device.config)
    ours, golden = (Machine(device.config, d, begin=False).send(*good_program(make))
                    for d in (device, GoldenDevice(device.config)))  # fmt: skip
    assert summary(ours) == summary(golden)
    assert len(ours) == 6 * device.config.clusters + 1


def cases(make):
    """What is wrong, packets, and the faults (with their opcodes) that they must bring."""
    config, beat = make.config, make.config.stream_words
    more = [0] * beat
    a, b, c = make.load_a([[1, 2]]), make.load_b([[3], [4]]), make.load_c([[1]])
    p = make.load_p([1], [1], [0], -9, 9)
    begin, run = make.begin_packet(), make.run(1, 1)
    unknown = [0x77, *more[1:]], [0x00] * 3 * beat
    yield "unknown opcodes", unknown, [(Fault.UNKNOWN_OPCODE, 0x77), (Fault.UNKNOWN_OPCODE, 0)]
    for op, layout in commands_of(config).items():
        whole = make.command(op)
        if len(whole) > beat:
            yield f"short header of {op.name}", [begin, whole[:-beat]], [(Fault.SHORT_PACKET, op)]
        if not layout.payload:
            yield f"long {op.name}", [begin, whole + more, whole + 3 * more], [(Fault.LONG_PACKET, op)] * 2
    loads = {"LOAD_A": a, "LOAD_B": b, "LOAD_C": c} | ({"LOAD_P": p} if config.post else {})
    for load, packet in loads.items():
        op = Op[load]
        short, long = (Fault.SHORT_PACKET, op), (Fault.LONG_PACKET, op)
        yield f"short {load}", [begin, packet[:-beat]], [short]
        yield f"only the header of {load}", [begin, packet[: COMMANDS[op].beats(beat) * beat]], [short]
        yield f"long {load}", [begin, packet + more, packet + 9 * more], [long] * 2
    yield "RUN of a bank that a short load emptied", [begin, a, b, run, a[:-beat], run], [
        (Fault.SHORT_PACKET, 0x10), (Fault.BANK_EMPTY, 0x20)]  # fmt: skip
    yield "append that is short", [begin, a, b, make.load_a([[1, 2]], append=1)[:-beat], run], [
        (Fault.SHORT_PACKET, 0x10), (Fault.BANK_EMPTY, 0x20)]  # fmt: skip
    bad = {
        "LOAD_A": [{"clusters": 0}, {"clusters": 1 << config.clusters}, {"segments": 0}, {"length": 0},
                   {"segments": config.a_segments + 1}, {"length": config.k_depth + 1}, {"length": 65535}],
        "LOAD_B": [{"clusters": 0x80000001}, {"rows": 0}, {"k": config.k_depth - 1}, {"lanes": 0}, {"k": 65535},
                   {"lanes": 1 << config.lanes_per_cluster}, {"columns": 0}, {"columns": config.tile_columns + 1}],
        "LOAD_C": [{"clusters": 0}, {"rows": 0}, {"rows": config.c_rows + 1}, {"columns": config.tile_columns + 1},
                   {"columns": 0}],
        "LOAD_P": [{"clusters": 8}, {"lanes": 0}, {"lanes": 8}, {"columns": 0}, {"columns": config.tile_columns + 1},
                   {"stochastic": 1}],
    }  # fmt: skip
    if config.weight_lanes > 1:  # lanes of a pair: both, or single ones with half of the rows
        bad["LOAD_B"] += [{"lanes": 7}, {"lanes": 13}, {"lanes": 1, "k": config.k_depth // 2 - 1},
                          {"lanes": 6, "k": config.k_depth // 2 - 1}]  # fmt: skip
    for load, changes in bad.items():
        op = Op[load]
        packet = loads.get(load, p)
        for change in changes:
            header = COMMANDS[op].decode(packet) | change
            wrong = make.command(op, **header) + packet[COMMANDS[op].beats(beat) * beat :]
            yield f"{load} with {change}", [begin, wrong], [(Fault.BAD_FIELD, op)]
    if "a" not in config.skip:
        yield "LOAD_A with bitmaps", [begin, make.load_a([[1, 2]], dense=False)], [(Fault.BAD_FIELD, 0x10)]
    if "b" not in config.skip:
        yield "LOAD_B with bitmaps", [begin, make.load_b([[1, 2]], dense=False)], [(Fault.BAD_FIELD, 0x11)]
    keep = config.psum_rows * config.lanes_per_cluster
    for change in ({"rows": 0}, {"clusters": 0}, {"clusters": 1 << config.clusters}, {"rows": keep + 1, "final": 0},
                   {"rows": keep + 1, "first": 0}, {"rows": config.psum_rows + 1, "share": 1, "final": 0},
                   {"columns": config.tile_columns}, *([] if config.post else [{"post": 1}])):  # fmt: skip
        wrong = make.command(Op.RUN, **(COMMANDS[Op.RUN].decode(run) | change))
        yield f"RUN with {change}", [begin, a, b, wrong], [(Fault.BAD_FIELD, 0x20)]
    for load, packet, again in (("LOAD_A", a, make.load_a([[1, 2]], append=1)),
                                ("LOAD_B", b, make.load_b([[1]], append=1)),
                                ("LOAD_C", c, make.load_c([[1]], append=1))):  # fmt: skip
        yield f"{load} of a fresh bank", [begin, packet, packet], [(Fault.BANK_IN_USE, Op[load])]
        yield f"{load} added to nothing", [begin, again], [(Fault.BANK_EMPTY, Op[load])]
        uses = [a, b, c, make.run(1, 1, use_c=1)]
        yield f"{load} added to a used bank", [begin, *uses, again], [(Fault.BANK_EMPTY, Op[load])]
    for change in ({"a_bank": 1}, {"b_bank": 1}, {"use_c": 1}, {"clusters": 3}, *([{"post": 1}] * config.post)):
        yield f"RUN with {change} not loaded", [begin, a, b, make.run(1, 1, **change)], [(Fault.BANK_EMPTY, 0x20)]
    yield "RUN after ABORT", [begin, a, b, make.command(Op.ABORT), run], [(Fault.BANK_EMPTY, 0x20)]
    for fault, words in ((Fault.WRONG_VERSION, [Op.BEGIN, ISA_VERSION + 1, config.hash]),
                         (Fault.WRONG_CONFIG, [Op.BEGIN, ISA_VERSION, config.hash ^ 1])):  # fmt: skip
        wrong = words + [0] * (-len(words) % beat)
        yield fault.name, [begin, a, wrong, a, b, run], [(fault, 1), *((Fault.NOT_BEGUN, op) for op in (16, 17, 32))]
    full = np.ones((config.a_segments // 2, config.k_depth), int)
    one = np.ones((1, config.k_depth), int)
    yield "activations beyond the buffer", [begin, make.load_a(full), b, run], [
        (Fault.BUFFER_FULL, 0x10), (Fault.BANK_EMPTY, 0x20)]  # fmt: skip
    yield "segments beyond the directory", [begin, make.load_a([[1]] * config.a_segments),
                                            make.load_a([[1]], append=1), make.load_a([[1]], append=1)], [
        (Fault.BUFFER_FULL, 0x10), (Fault.BANK_EMPTY, 0x10)]  # fmt: skip
    yield "too many and too short", [begin, make.load_a(full)[:-beat]], [(Fault.SHORT_PACKET, 0x10)]
    yield "too many and too long", [begin, make.load_a(full) + more], [(Fault.BUFFER_FULL, 0x10)]
    yield "masks beyond the buffer", [begin, make.load_c([[1]] * config.c_rows), make.load_c([[1]], append=1),
                                      make.load_c(one[:, :1], append=1)], [
        (Fault.BUFFER_FULL, 0x12), (Fault.BANK_EMPTY, 0x12)]  # fmt: skip


def vector_cases(make):
    """The same of VECTOR."""
    beat, begin, op = make.config.stream_words, make.begin_packet(), Op.VECTOR
    packet = make.vector(np.arange(40).reshape(8, 5))
    if not make.config.vector:
        yield "VECTOR without the unit", [begin, packet], [(Fault.UNKNOWN_OPCODE, op)]
        return
    short, long = (Fault.SHORT_PACKET, op), (Fault.LONG_PACKET, op)
    yield "short VECTORs", [begin, *(packet[:-n] for n in range(beat, 12, beat))], [short] * len(range(beat, 12, beat))
    yield "only the header of VECTOR", [begin, packet[: COMMANDS[op].beats(beat) * beat]], [short]
    yield "long VECTORs", [begin, packet + [0] * beat, packet + [5] * 9 * beat, packet], [long] * 2
    for change in ({"window": 0}, {"window": (1 << 14) + 1}, {"window": 65535}, {"count": 0}, {"kind": 2}, {"kind": 8},
                   {"shift": 48}, {"shift": 63}):  # fmt: skip
        yield f"VECTOR with {change}", [begin, make.vector(np.ones((4, 2), int), **change)], [(Fault.BAD_FIELD, op)]
    refused = make.command(Op.BEGIN, version=ISA_VERSION + 1)
    yield "VECTOR without BEGIN", [refused, packet], [(Fault.WRONG_VERSION, 1), (Fault.NOT_BEGUN, op)]


def mask_cases(make):
    """The same of MASK; the blocks threshold and store are built, or no unit."""
    config, beat, begin, op = make.config, make.config.stream_words, make.begin_packet(), Op.MASK
    values = np.arange(-20, 20).reshape(5, 8)
    packet = make.mask(MaskKind.GREATER, values)
    if not config.blocks:
        yield "MASK without the unit", [begin, packet], [(Fault.UNKNOWN_OPCODE, op)]
        return
    short, long, empty, full, bad = ((Fault(code), op) for code in (2, 3, 11, 10, 4))
    replay = make.mask(MaskKind.REPLAY, rows=5, length=8)
    stored = make.mask(MaskKind.GREATER, values, store=1)
    yield "short MASKs", [begin, *(packet[:-n] for n in range(beat, 12, beat))], [short] * len(range(beat, 12, beat))
    yield "only the header of MASK", [begin, packet[: COMMANDS[op].beats(beat) * beat]], [short]
    yield "long MASKs", [begin, packet + [0] * beat, packet + [5] * 9 * beat, packet], [long] * 2
    cut, extended = stored[:-beat], [*stored, *[0] * beat]
    yield "REPLAY of masks that broken packets left", [begin, stored, replay, cut, replay, stored, extended, replay], [
        short, empty, long, empty]  # fmt: skip
    yield "REPLAY after ABORT", [begin, stored, make.command(Op.ABORT), replay], [empty]
    yield "REPLAY of another shape", [begin, stored, *(make.mask(MaskKind.REPLAY, rows=r, length=n) for r, n in (
        (5, 7), (4, 8), (8, 5), (5, 8)))], [empty] * 3  # fmt: skip
    yield "REPLAY with data too long", [begin, stored, [*replay, *[0] * beat], replay], [long]
    much = np.ones((config.mask_depth + 1, 1), int)
    overflows = make.mask(MaskKind.GREATER, much, store=1)
    gone = make.mask(MaskKind.REPLAY, rows=len(much), length=1)
    yield "a mask beyond its slot", [begin, overflows, gone, overflows + [0] * beat, overflows[:-beat], gone], [
        full, empty, full, short, empty]  # fmt: skip
    yield "a mask that fills its slot", [begin, make.mask(MaskKind.GREATER, much[1:], store=1),
                                         make.mask(MaskKind.REPLAY, rows=len(much) - 1, length=1)], []  # fmt: skip
    largest = 1 << (config.a_width - 1)
    wrong = {
        MaskKind.GREATER: [{"length": 0}, {"rows": 0}, {"level": largest}, {"level": -largest - 1}, {"slot": 15}],
        MaskKind.MAGNITUDE: [{"level": 0}, {"level": -1}, {"level": largest}, {"length": 0}, {"kind": 7}],
        MaskKind.PRUNE: [{"level": 0}, {"level": -1}, {"level": largest}, {"seed": 0}],
        MaskKind.DROPOUT: [{"level": 0}, {"level": 1 << 16}, {"level": -1}, {"seed": 0}],
        MaskKind.REPLAY: [{"store": 1}, {"slot": config.mask_slots}, {"rows": 0}],
        MaskKind.NORMS: [{"length": config.norm_channels + 1}, {"store": 1}, {"values": 0}],
        MaskKind.PROJECT: [{"length": (1 << 14) + 1}, {"store": 1}, {"values": 0}, {"seed": 0}],
    }
    for kind, changes in wrong.items():
        built = KIND_BLOCKS[kind] in config.blocks
        for change in changes if built else [{}]:
            good = make.mask(kind, values, level=1)
            header = COMMANDS[op].decode(good) | change
            broken = make.command(op, **header) + good[COMMANDS[op].beats(beat) * beat :]
            yield f"{kind.name} with {change}", [begin, broken], [bad]
    refused = make.command(Op.BEGIN, version=ISA_VERSION + 1)
    yield "MASK without BEGIN", [refused, packet], [(Fault.WRONG_VERSION, 1), (Fault.NOT_BEGUN, op)]


def test_every_fault(device):
    device.reset()
    make = Packets(device.config)
    seen = set()
    for what, packets, expected in [*cases(make), *vector_cases(make), *mask_cases(make)]:
        machines = [Machine(device.config, d, begin=False) for d in (device, GoldenDevice(device.config))]
        ours, golden = ([r for r in machine.send(*packets) if r["reply"] == Reply.ERROR] for machine in machines)
        assert faults(golden) == expected, what
        assert faults(ours) == expected, what
        check_good_program(device)
        seen |= {fault for fault, _ in expected}
    assert seen == set(Fault) - ({Fault.MASK_EMPTY} if not device.config.blocks else set())


def test_not_begun_after_reset(device):
    device.reset()
    make = Packets(device.config)
    machine = Machine(device.config, device, begin=False)
    packets = [make.load_a([[1]]), make.load_b([[1]]), make.load_c([[1]]), make.load_p([1], [1], [0], 0, 1),
               make.run(1, 1)]  # fmt: skip
    assert faults(machine.send(*packets)) == [(Fault.NOT_BEGUN, op) for op in (0x10, 0x11, 0x12, 0x13, 0x20)]
    replies = machine.send(make.command(Op.IDENTIFY), make.command(Op.ABORT), make.command(Op.READ_COUNTERS))
    assert [r["reply"] for r in replies] == [Reply.IDENTITY, Reply.ABORTED, Reply.COUNTERS]
    check_good_program(device)


def test_reset_empties_slots(device):
    fault = Fault.MASK_EMPTY if "store" in device.config.blocks else Fault.UNKNOWN_OPCODE
    machine = Machine(device.config, device)
    replays = [machine.mask(MaskKind.REPLAY, rows=2, length=3, slot=n) for n in range(device.config.mask_slots)]
    stores = [machine.mask(MaskKind.GREATER, np.ones((2, 3), int), store=1, slot=n) for n in range(len(replays))]
    answer = Reply.MASK if fault == Fault.MASK_EMPTY else Reply.ERROR
    assert [r["reply"] for r in machine.send(*stores, *replays)] == [answer] * 2 * len(replays)
    device.reset()
    assert faults(machine.send(machine.begin_packet(), *replays)) == [(fault, Op.MASK)] * len(replays)


def test_program_of_another_configuration(device):
    device.reset()
    other = device.config.replace(k_depth=64, a_depth=512)
    replies = Machine(other, device, begin=False).send(*good_program(Packets(other)))
    assert faults(replies[:1]) == [(Fault.WRONG_CONFIG, 1)]
    assert faults(replies[1:-1]) == [(Fault.NOT_BEGUN, op) for op in (0x10, 0x11, 0x12, 0x20)]
    assert replies[-1] == {"reply": Reply.SYNCED, "tag": 9}
    check_good_program(device)


# ---------------------------------------------------------------------- fuzz


def garbage(make, chance):
    """A packet that is likely to be wrong: random words, or a good one with fields, bits or length changed."""
    beat = make.config.stream_words
    kind = chance.choice(("random", "fields", "bits", "length", "length", "single", "good"))
    if kind == "random":
        words = [chance.getrandbits(32) for _ in range(beat * chance.randint(1, 12))]
        if chance.random() < 0.7:
            words[0] = words[0] & ~0xFF | chance.choice(list(Op))
        return words
    if kind == "single":
        first = chance.choice(list(Op)) | chance.getrandbits(24) << 8
        return [first, *(chance.getrandbits(32) for _ in range(beat - 1))]
    packet = list(chance.choice(RandomProgram(make.config, chance, runs=1).packets))
    if kind == "fields":
        layout = COMMANDS[Op(packet[0] & 0xFF)]
        if layout.fields:
            f = chance.choice(layout.fields)
            packet[f.word] &= ~(((1 << f.width) - 1) << f.lsb) & 0xFFFFFFFF
            packet[f.word] |= chance.choice((0, 1, (1 << f.width) - 1, chance.getrandbits(f.width))) << f.lsb
    elif kind == "bits":
        for _ in range(chance.randint(1, 4)):
            packet[chance.randrange(len(packet))] ^= 1 << chance.randrange(32)
    elif kind == "length":
        size = chance.randint(1, len(packet) // beat + 3) * beat
        packet = (packet + [chance.getrandbits(32) for _ in range(3 * beat)])[:size]
    return packet


def small(packet):
    """A MASK of few values: those without data answer as much as they are asked."""
    if packet[0] & 0xFF == Op.MASK and len(packet) > 1:
        packet[1] &= 0x003F003F
    return packet


def fuzz(device, chance, count):
    """Packets of garbage, between BEGINs; then ECHO must answer."""
    make = Packets(device.config)
    packets = [make.begin_packet()]
    for _ in range(count):
        packets.append(make.begin_packet() if chance.random() < 0.05 else small(garbage(make, chance)))
    token = chance.getrandbits(32)
    packets += [make.command(Op.SYNC, tag=0xFEED), make.command(Op.ECHO, token=token)]
    words, last = joined(device.config, packets)
    # everything is taken, and the last reply comes; how many come before it is unknown
    result = device.model.run(words, last, in_stall=chance.choice((0.0, 0.3)), out_stall=chance.choice((0.0, 0.5, 0.9)),
                              seed=chance.getrandbits(30), limits=LIMITS)  # fmt: skip
    assert result.beats_in == len(last)
    ends = (np.flatnonzero(result.last) + 1) * device.config.stream_words
    replies = np.split(result.words, ends)
    assert len(replies[-1]) == 0
    decoded = [decode(device.config, reply) for reply in replies[:-1]]
    assert decoded[-1] == {"reply": Reply.ECHOED, "token": token}
    assert decoded[-2] == {"reply": Reply.SYNCED, "tag": 0xFEED}


def test_garbage_is_survived(device):
    device.reset()
    for seed in range(60):
        fuzz(device, random.Random(f"garbage {seed}"), 12)
        check_good_program(device)


def replies_of(device, packets, out_stall, seed):
    """What netlist and golden model answer to packets."""
    words, last = joined(device.config, packets)
    limits = limits_for(words, last, device.config.stream_words, LIMITS)
    result = device.model.run(words, last, out_stall=out_stall, seed=seed, limits=limits)
    return (
        [decode(device.config, p) for p in np.split(w, (np.flatnonzero(e) + 1) * device.config.stream_words)[:-1]]
        for w, e in ((result.words, result.last), GoldenDevice(device.config).execute(words, last))
    )


def in_any_order(device, seed):
    """Replies of netlist and golden model to a program's packets, shuffled; their faults are the same."""
    chance = random.Random(f"order {seed}")
    program = RandomProgram(device.config, chance, runs=3, faults=True)
    packets = program.packets[1:-2]
    chance.shuffle(packets)
    make = Packets(device.config)
    packets = [make.command(Op.ABORT), make.begin_packet(), *packets, make.command(Op.SYNC, tag=1)]
    ours, golden = replies_of(device, packets, chance.choice((0.0, 0.5)), seed)
    errors = [[r for r in replies if r["reply"] == Reply.ERROR] for replies in (ours, golden)]
    assert faults(errors[0]) == faults(errors[1])
    return ours, golden


def test_any_order_of_packets(device):
    """Legal packets in illegal orders: faults come as the golden model has them, and nothing waits for ever."""
    device.reset()
    for seed in range(40):
        assert len({len(replies) for replies in in_any_order(device, seed)}) == 1
    check_good_program(device)


@pytest.mark.parametrize("name", ["K in PEs, none", "shared weights"])
def test_broken_chains(name):
    """Rows whose sums in the PEs are those of others may not come, but whatever follows does."""
    device, missing = RtlDevice(VARIANTS[name], limits=LIMITS), 0
    for seed in range(40):
        ours, golden = in_any_order(device, seed)
        assert ours[-1] == golden[-1] == {"reply": Reply.SYNCED, "tag": 1}
        missing += len(golden) - len(ours)
    check_good_program(device)
    device.close()
    assert missing > 0


def test_abort_in_the_middle(device):
    """Rows that were not dispatched are dropped, the others come whole; afterwards everything is empty."""
    device.reset()
    for seed in range(25):
        chance = random.Random(f"abort {seed}")
        program = RandomProgram(device.config, chance, runs=3)
        make = Packets(device.config)
        cut = chance.randint(2, len(program.packets) - 3)
        packets = [*program.packets[:cut], make.command(Op.ABORT), make.run(1, 1), make.command(Op.SYNC)]
        ours, golden = replies_of(device, packets, chance.choice((0.0, 0.5)), seed)
        assert ours[-2:] == golden[-2:] and ours[-2]["fault"] == Fault.BANK_EMPTY
        assert any(r["reply"] == Reply.ABORTED for r in ours)
        mine, all_of_them = summary(ours)[0], summary(golden)[0]
        remaining = list(all_of_them)
        for row in mine:
            remaining.remove(row)
        check_good_program(device)


def test_stalled_output_only_delays(device):
    """With o stopped, i stops too, sooner or later; nothing is lost."""
    device.reset()
    make = Packets(device.config)
    program = RandomProgram(device.config, random.Random("stalled"), runs=12)
    words, last = joined(device.config, program.packets)
    limits = limits_for(words, last, device.config.stream_words, RunLimits(stuck_limit=50_000))
    counts = []
    for stall in (0.0, 0.99):
        result = device.model.run(words, last, out_stall=stall, seed=5, limits=limits)
        packets = np.split(result.words, (np.flatnonzero(result.last) + 1) * device.config.stream_words)[:-1]
        counts.append(sum(int(p[0]) & 0xFF == Reply.RESULT for p in packets))
    assert counts == [program.results] * 2
    assert device.model.run(*joined(device.config, [make.command(Op.ECHO, token=3)]), limits=LIMITS).beats_out >= 1
    check_good_program(device)
