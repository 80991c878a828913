"""The golden interpreter: RUN in all its forms, with hand-assembled packets, against independent formulations."""

import time

import numpy as np
import pytest
from maskwork.gen.config import Config, preset
from maskwork.gen.isa import ISA_VERSION, Op, Reply
from maskwork.sim_tb.golden import Interpreter, conv2d, conv2d_macs, macs, masked_matmul, requantise
from maskwork.sim_tb.packets import Machine, decode, result_matrix

SMALL = Config(lanes=4, lanes_per_cluster=2, pes_per_lane=2, slots=8, k_depth=32, a_depth=256, a_segments=64,
               c_rows=16, psum_rows=4)  # fmt: skip
WIDE = SMALL.replace(stream_words=4)


def sparse(rng, shape, density=0.5, bits=9):
    high = 1 << (bits - 1)
    return rng.integers(-high, high, shape) * (rng.random(shape) < density)


def test_words_of_a_product_by_hand():
    golden = Interpreter(SMALL)
    words = [
        0x01, ISA_VERSION, SMALL.hash,                    # BEGIN
        0x10, 0x1, 3 << 16 | 1, 0b101, 3 | (0x1FF << 9),  # LOAD_A: one segment, length 3: 3, 0, -1
        0x11, 0x1, 3, 2 << 16 | 0b11,                     # LOAD_B: 3 rows, lanes 0 and 1, 2 columns
        0b01, 5, 0b11, 1 | 1 << 9, 0b10, 7,               # rows (5, 0), (1, 1), (0, 7)
        0x20 | 1 << 13 | 1 << 14 | 0x2A << 16 | 1 << 24, 0x1, 1, 0, 0, 1 | 1 << 16, *[0] * 12, 9,
    ]  # fmt: skip
    replies = golden.execute(np.array(words, np.uint32), [3, 8, 18, 37])
    # 3*(5, 0) - (0, 7): bitmap 0b11, values 15 and -7
    assert [r.tolist() for r in replies] == [[0x2A90, 2 << 16 | 9, 0b11, 15, 0xFFFFFFF9]]


@pytest.mark.parametrize("config", [SMALL, WIDE], ids=["1 word", "4 words"])
def test_answers_without_a_program(config):
    machine = Machine(config, begin=False)
    command = machine.command
    (identity,) = machine.send(command(Op.IDENTIFY))
    assert identity == {"reply": Reply.IDENTITY, "version": ISA_VERSION, "config": config.hash, "lanes": 4,
                        "pes_per_lane": 2, "slots": 8, "stream_words": config.stream_words}  # fmt: skip
    replies = machine.send(command(Op.ECHO, token=0xDEADBEEF), command(Op.SYNC, tag=77), command(Op.ABORT))
    assert replies == [
        {"reply": Reply.ECHOED, "token": 0xDEADBEEF},
        {"reply": Reply.SYNCED, "tag": 77},
        {"reply": Reply.ABORTED},
    ]
    assert machine.multiplies() == 0


@pytest.mark.parametrize("config", [SMALL, WIDE, SMALL.replace(acc_width=64, post=False)])
@pytest.mark.parametrize("seed", range(4))
def test_product(config, seed):
    rng = np.random.default_rng(seed)
    m, k, n = (int(rng.integers(1, high + 1)) for high in (16, 32, 16))
    a, b, mask = sparse(rng, (m, k)), sparse(rng, (k, n), 0.3), rng.random((m, n)) < 0.5
    machine = Machine(config)
    replies = machine.send(
        machine.load_a(a), machine.load_b(b), machine.load_c(mask), machine.run(m, n, row=100, tag=9, use_c=1)
    )
    assert [r["row"] for r in replies] == [100 + r for r in range(m)]
    assert {(r["tag"], r["lane"], r["post"]) for r in replies} == {(9, 0, 0)}
    assert np.array_equal(result_matrix(replies, n), masked_matmul(a, b, c_mask=mask))
    assert machine.multiplies() == macs(a, b, c_mask=mask)["macs_effectual"]


def test_dense_loads_and_skip():
    rng = np.random.default_rng(1)
    a, b = sparse(rng, (5, 20)), sparse(rng, (20, 9))
    for config in (SMALL, SMALL.replace(skip=""), SMALL.replace(a_width=18, b_width=14)):
        machine = Machine(config)
        packets = machine.load_a(a, dense=True), machine.load_b(b, dense=True), machine.run(5, 9)
        assert np.array_equal(result_matrix(machine.send(*packets), 9), a @ b)
        assert machine.multiplies() == macs(a, b, dense=True)["macs_effectual"]
    # bits that are set on zeros are multiplied; only presence skips
    machine = Machine(SMALL)
    present = rng.random(a.shape) < 0.5
    packets = machine.load_a(a, present=present), machine.load_b(b), machine.run(5, 9)
    assert np.array_equal(result_matrix(machine.send(*packets), 9), masked_matmul(a, b, present))
    assert machine.multiplies() == int(((present.astype(int)) @ (b != 0)).sum())


def test_counters_run_from_begin_to_sync():
    machine = Machine(SMALL)
    packets = machine.load_a([[1, 2]]), machine.load_b([[1], [1]]), machine.run(1, 1), machine.run(1, 1)
    machine.send(*packets)
    assert machine.multiplies() == 4
    machine.send(machine.command(Op.SYNC), machine.run(1, 1))
    assert machine.multiplies() == 4
    machine.begin()
    assert not any(machine.counters().values())


def test_clusters_have_buffers_of_their_own():
    rng = np.random.default_rng(2)
    a, b = sparse(rng, (2, 3, 8)), sparse(rng, (8, 4))
    machine = Machine(SMALL)
    replies = machine.send(
        machine.load_a(a[0], clusters=1), machine.load_a(a[1], clusters=2), machine.load_b(b, clusters=3),
        machine.run(3, 4, clusters=3),
    )  # fmt: skip
    assert [r["lane"] for r in replies] == [0] * 3 + [2] * 3
    assert np.array_equal(result_matrix(replies[:3], 4), a[0] @ b)
    assert np.array_equal(result_matrix(replies[3:], 4), a[1] @ b)


def test_banks_and_appended_loads():
    rng = np.random.default_rng(3)
    a, b, mask = sparse(rng, (10, 20)), sparse(rng, (20, 16)), rng.random((10, 16)) < 0.5
    machine = Machine(SMALL)
    replies = machine.send(
        machine.load_a(a[:4], bank=1), machine.load_a(a[4:], bank=1, append=1),
        machine.load_b(b[12:], k=12), machine.load_b(b[:12], append=1),
        machine.load_c(mask[:1], bank=1), machine.load_c(mask[1:], bank=1, append=1),
        machine.run(9, 16, a_bank=1, c_bank=1, use_c=1, seg=1, c_row=1),
    )  # fmt: skip
    assert np.array_equal(result_matrix(replies, 16), masked_matmul(a, b, c_mask=mask)[1:])
    # columns that a row's load leaves out become absent; a used bank is begun anew
    replies = machine.send(
        machine.load_b(b[:, :16]), machine.load_b(b[:5, :3], append=1), machine.run(10, 16, a_bank=1)
    )
    b[:5, 3:] = 0
    assert np.array_equal(result_matrix(replies, 16), a @ b)


def test_segments_of_different_lengths_wrap_around_the_weights():
    rng = np.random.default_rng(4)
    short, long = sparse(rng, (1, 7)), sparse(rng, (1, 32))
    b = sparse(rng, (32, 5))
    machine = Machine(SMALL)
    replies = machine.send(
        machine.load_a(short), machine.load_a(long, append=1), machine.load_b(b), machine.run(2, 5, k=30)
    )
    expected = [sum(int(a[0, e]) * b[(30 + e) % 32] for e in range(a.shape[1])) for a in (short, long)]
    assert np.array_equal(result_matrix(replies, 5), expected)
    count = sum(int((b[(30 + e) % 32] != 0).sum()) for a in (short, long) for e in np.flatnonzero(a[0]))
    assert machine.multiplies() == count


@pytest.mark.parametrize("share", [0, 1])
def test_k_tiles(share):
    rng = np.random.default_rng(7)
    rows = 4 if share else 8
    a, b, mask = sparse(rng, (rows, 70)), sparse(rng, (70, 32)), rng.random((rows, 16)) < 0.7
    lanes = 2 if share else 1
    machine = Machine(SMALL)
    replies = machine.send(machine.load_c(mask))
    for tile, k in enumerate((0, 32, 64)):
        part, bank = slice(k, k + 32), tile % 2
        packets = [machine.load_a(a[:, part], bank=bank)]
        if share:
            packets += [machine.load_b(b[part, :16], bank=bank, lanes=1),
                        machine.load_b(b[part, 16:], bank=bank, lanes=2, append=1)]  # fmt: skip
        else:
            packets += [machine.load_b(b[part, :16], bank=bank)]
        final = {"first": int(k == 0), "final": int(k == 64)}
        packets += [machine.run(rows, 16, a_bank=bank, b_bank=bank, use_c=1, share=share, **final)]
        replies += machine.send(*packets)
    assert len(replies) == rows * lanes
    for lane in range(lanes):
        mine = [r for r in replies if r["lane"] == lane]
        assert np.array_equal(result_matrix(mine, 16), masked_matmul(a, b[:, 16 * lane :][:, :16], c_mask=mask))


def test_share_with_parameters_of_each_lane():
    rng = np.random.default_rng(8)
    a, b = sparse(rng, (3, 16)), sparse(rng, (16, 32))
    bias, mult, shift = rng.integers(-9999, 9999, 32), rng.integers(0, 1 << 24, 32), rng.integers(28, 34, 32)
    machine = Machine(WIDE)
    packets = [machine.load_a(a, clusters=3)]
    for lane in range(4):
        c = slice(8 * lane, 8 * lane + 8)
        where = {"lanes": 1 << lane % 2, "clusters": 1 << lane // 2, "bank": 1}
        packets += [machine.load_b(b[:, c], append=lane % 2, **where),
                    machine.load_p(bias[c], mult[c], shift[c], -100, 99 + lane, **where)]  # fmt: skip
    replies = machine.send(*packets, machine.run(3, 8, b_bank=1, clusters=3, share=1, post=1))
    assert [r["lane"] for r in replies] == [0, 1] * 3 + [2, 3] * 3
    for lane in range(4):
        c = slice(8 * lane, 8 * lane + 8)
        # the limits are the bank's: those that came last
        expected = requantise(a @ b[:, c], bias[c], mult[c], shift[c], -100, 99 + (lane | 1))
        assert np.array_equal(result_matrix([r for r in replies if r["lane"] == lane], 8), expected)
    assert machine.multiplies() == macs(a, b)["macs_effectual"]


def test_post_gives_unwanted_columns_no_bias():
    machine = Machine(SMALL)
    replies = machine.send(
        machine.load_a([[2], [0]]), machine.load_b([[3, 4, 5]]), machine.load_c([[1, 0, 1], [0, 1, 0]]),
        machine.load_p([10, 10, -5], [1, 1, 1], [0, 0, 0], 0, 255), machine.run(2, 3, use_c=1, post=1),
    )  # fmt: skip
    assert result_matrix(replies, 3).tolist() == [[16, 0, 5], [0, 10, 0]]
    assert all(r["post"] == 1 for r in replies)


def test_sums_wrap_to_the_accumulator():
    config = SMALL.replace(acc_width=18)
    machine = Machine(config)
    a, b = [[255] * 5], [[255, -256, 1]] * 5
    replies = machine.send(machine.load_a(a), machine.load_b(b), machine.run(1, 3))
    wrapped = [(v + (1 << 17)) % (1 << 18) - (1 << 17) for v in (255 * 255 * 5, -255 * 256 * 5, 1275)]
    assert result_matrix(replies, 3).tolist() == [wrapped]


def naive_rows(config, run, a, b, wanted):
    """The loop of RUN as the instruction set words it, one step at a time."""

    def step(state, level):
        return tuple((v + run[f"{level}_{n}"] + 0x8000) % 0x10000 - 0x8000 for v, n in zip(state, names, strict=True))

    names = ("seg", "k", "x", "y")
    state, results, m0, m1 = tuple(run[n] for n in names), [], 0, 0
    for r in range(run["rows"]):
        acc, tap = np.zeros(b.shape[1], np.int64), state
        for _ in range(run["t1"] + 1):
            for i0 in range(run["t0"] + 1):
                seg, k, x, y = tap
                if 0 <= x < run["x_limit"] and 0 <= y < run["y_limit"] and 0 <= seg < len(a):
                    for e, value in enumerate(a[seg]):
                        acc += int(value) * b[(k + e) % config.k_depth]
                tap = step(tap, "t0" if i0 < run["t0"] else "t1")
        results.append(acc * wanted[r])
        if m0 < run["m0"]:
            state, m0 = step(state, "m0"), m0 + 1
        elif m1 < run["m1"]:
            state, m0, m1 = step(state, "m1"), 0, m1 + 1
        else:
            state, m0, m1 = step(state, "m2"), 0, 0
    return np.array(results)


@pytest.mark.parametrize("seed", range(20))
def test_descriptors_at_random(seed):
    rng = np.random.default_rng(seed)
    a, b = sparse(rng, (12, 5)), sparse(rng, (32, 6))
    run = {"rows": int(rng.integers(1, 16)), "x_limit": 6, "y_limit": 5}
    run |= {n: int(rng.integers(0, 4)) for n in ("m0", "m1", "t0", "t1")}
    for level in ("", "m2_", "m1_", "m0_", "t1_", "t0_"):
        run |= {level + n: int(rng.integers(-2, 5)) for n in ("seg", "k", "x", "y")}
    if seed % 4 == 0:
        run |= {"seg": 32767, "m0_seg": 32767, "t0_seg": 3, "m1_seg": -32768, "x_limit": 65535, "y_limit": 65535}
    wanted = rng.random((run["rows"], 6)) < 0.6
    machine = Machine(SMALL)
    fields = {"columns": 6, "use_c": 1, **run}
    replies = machine.send(machine.load_a(a), machine.load_b(b), machine.load_c(wanted), machine.run(**fields))
    assert np.array_equal(result_matrix(replies, 6), naive_rows(SMALL, run, a, b, wanted))


def conv_run(height, width, kernel, channels, stride, padding, dilation):
    """RUN fields of a convolution: a segment is a pixel, x and y its place, m0 along a row, m1 down the image."""
    (kh, kw), d = kernel, dilation
    out_h, out_w = ((s + 2 * padding - d * (k - 1) - 1) // stride + 1 for s, k in ((height, kh), (width, kw)))
    return {
        "rows": out_h * out_w, "m0": out_w - 1, "m1": out_h - 1, "t0": kw - 1, "t1": kh - 1,
        "x": -padding, "y": -padding, "seg": -padding * width - padding, "x_limit": width, "y_limit": height,
        "m0_x": stride, "m0_seg": stride,
        "m1_x": -stride * (out_w - 1), "m1_y": stride, "m1_seg": stride * width - stride * (out_w - 1),
        "t0_x": d, "t0_seg": d, "t0_k": channels,
        "t1_x": -d * (kw - 1), "t1_y": d, "t1_seg": d * width - d * (kw - 1), "t1_k": channels,
    }  # fmt: skip


@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 1, 1), (2, 1, 1), (1, 2, 2), (3, 0, 1)])
def test_convolution_by_descriptor(stride, padding, dilation):
    rng = np.random.default_rng(9)
    x, w = sparse(rng, (1, 6, 7, 3), bits=9), sparse(rng, (3, 2, 3, 11), 0.4)
    mask = rng.random(conv2d(x, w, stride, padding, dilation).shape) < 0.8
    config = SMALL.replace(c_rows=64)
    machine = Machine(config)
    run = conv_run(6, 7, (3, 2), 3, stride, padding, dilation)
    replies = machine.send(
        machine.load_a(x.reshape(42, 3)), machine.load_b(w.reshape(18, 11)), machine.load_c(mask.reshape(-1, 11)),
        machine.run(**run, columns=11, use_c=1),
    )  # fmt: skip
    expected = conv2d(x, w, stride, padding, dilation, c_mask=mask)
    assert np.array_equal(result_matrix(replies, 11), expected.reshape(-1, 11))
    count = conv2d_macs(x, w, stride, padding, dilation, c_mask=mask)["macs_effectual"]
    assert machine.multiplies() == count


def test_speed():
    rng = np.random.default_rng(11)
    machine = Machine(preset("small").replace(c_rows=512))
    a, b = sparse(rng, (70, 70)), sparse(rng, (70, 70))
    x, w = sparse(rng, (1, 18, 18, 25)), sparse(rng, (3, 3, 25, 64))
    product = [machine.load_a(a)]
    for tile, n in enumerate((0, 64)):
        columns = b[:, n : n + 64]
        product += [machine.load_b(columns, bank=tile), machine.run(70, columns.shape[1], b_bank=tile)]
    conv = [machine.load_a(x.reshape(-1, 25), bank=1), machine.load_b(w.reshape(225, 64)),
            machine.run(**conv_run(18, 18, (3, 3), 25, 1, 1, 1), columns=64, a_bank=1)]  # fmt: skip
    elapsed = []
    for packets in (product, conv):
        words = np.array([v for p in packets for v in p], np.uint32)
        begin = time.perf_counter()
        replies = machine.device._interpreter.execute(words, np.cumsum([len(p) for p in packets]))
        elapsed.append(time.perf_counter() - begin)
        replies = [decode(machine.config, r) for r in replies]
        if packets is product:
            result = np.concatenate([result_matrix(replies[:70], 64), result_matrix(replies[70:], 6)], axis=1)
            assert np.array_equal(result, a @ b)
        else:
            assert np.array_equal(result_matrix(replies, 64), conv2d(x, w, padding=1).reshape(-1, 64))
    # generous: a small machine that other work shares
    assert elapsed[0] < 1 and elapsed[1] < 2, elapsed
