"""The golden model against independent formulations, and every rule of the stream with hand-assembled packets."""

import time
from fractions import Fraction

import numpy as np
import pytest
from maskwork.gen.config import CHUNK, Config, preset
from maskwork.gen.errors import MaskworkTypeError, MaskworkValueError
from maskwork.gen.isa import COMMANDS, COUNTERS, ISA_VERSION, REPLIES, Fault, Op, Reply
from maskwork.sim_tb.golden import Interpreter, conv2d, conv2d_macs, macs, masked_matmul, requantise

# ---------------------------------------------------------------------- product


def sparse(rng, shape, density=0.5, bits=9):
    high = 1 << (bits - 1)
    return rng.integers(-high, high, shape) * (rng.random(shape) < density)


def test_masked_matmul_by_hand():
    a = np.array([[1, 0, 2], [0, 3, -1]], np.int8)
    b = np.array([[4, 5], [6, 0], [7, -8]], np.int8)
    assert masked_matmul(a, b).tolist() == [[18, -11], [11, 8]]
    a_mask = [[True, True, False], [True, True, True]]
    assert masked_matmul(a, b, a_mask=a_mask).tolist() == [[4, 5], [11, 8]]
    c_mask = [[1, 0], [0, 1]]
    assert masked_matmul(a, b, c_mask=c_mask, dense=True).tolist() == [[18, 0], [0, 8]]
    # row 0: k=0 meets two b, k=2 two; row 1: k=1 meets one, k=2 two
    assert macs(a, b) == {"macs_dense": 12, "macs_effectual": 7}
    assert macs(a, b, c_mask=c_mask) == {"macs_dense": 12, "macs_effectual": 2 + 1}
    assert macs(a, b, dense=True)["macs_effectual"] == 12
    assert macs(a, b, a_mask=a_mask, dense=True)["macs_effectual"] == 10


@pytest.mark.parametrize("seed", range(12))
def test_masked_matmul_random(seed):
    rng = np.random.default_rng(seed)
    m, k, n = rng.integers(1, 9, 3)
    a, b = sparse(rng, (m, k)), sparse(rng, (k, n))
    ma, mb, mc = (rng.random(s) < 0.6 for s in ((m, k), (k, n), (m, n)))
    expected = np.einsum("mk,mk,kn,kn,mn->mn", a, ma, b, mb, mc)
    assert np.array_equal(masked_matmul(a, b, ma, mb, mc), expected)
    for dense in (False, True):
        ea, eb = ma & ((a != 0) | dense), mb & ((b != 0) | dense)
        count = sum(ea[i, t] and eb[t, j] and mc[i, j] for i in range(m) for t in range(k) for j in range(n))
        assert macs(a, b, ma, mb, mc, dense) == {"macs_dense": m * k * n, "macs_effectual": count}
        assert np.array_equal(masked_matmul(a, b, ma, mb, mc, dense), expected)


def test_masked_matmul_is_exact_beyond_float():
    a = np.array([[(1 << 40) + 1, 1]])
    b = np.array([[(1 << 20) + 1], [1]])
    assert int(masked_matmul(a, b)[0, 0]) == ((1 << 40) + 1) * ((1 << 20) + 1) + 1
    with pytest.raises(MaskworkValueError, match="below 2\\*\\*63"):
        masked_matmul(a, b << 4)
    assert masked_matmul(np.zeros((2, 0), int), np.zeros((0, 3), int)).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_product_errors():
    a, b = np.ones((2, 3), int), np.ones((3, 4), int)
    with pytest.raises(MaskworkTypeError, match="a must be an integer array, not float64"):
        masked_matmul(a * 1.0, b)
    with pytest.raises(MaskworkValueError, match="b must have 3 rows"):
        masked_matmul(a, a)
    with pytest.raises(MaskworkValueError, match=r"c_mask must have shape \(2, 4\), not \(4, 2\)"):
        masked_matmul(a, b, c_mask=np.ones((4, 2), bool))
    with pytest.raises(MaskworkTypeError, match="a_mask must be a boolean"):
        macs(a, b, a_mask=a * 2)
    with pytest.raises(MaskworkValueError, match="2 dimensions"):
        masked_matmul(a[0], b)
    with pytest.raises(MaskworkValueError, match="stride must be an integer of at least 1"):
        conv2d(np.ones((1, 3, 3, 1), int), np.ones((1, 1, 1, 1), int), stride=0)
    with pytest.raises(MaskworkValueError, match="fit the padded x"):
        conv2d(np.ones((1, 3, 3, 1), int), np.ones((4, 1, 1, 1), int))
    with pytest.raises(MaskworkValueError, match=r"w must have shape \(KH, KW, 1, Cout\)"):
        conv2d(np.ones((1, 3, 3, 1), int), np.ones((1, 1, 2, 1), int))


def naive_conv(x, w, stride, padding, dilation, shape, ex, ew, mc):
    result, dense, effectual = np.zeros(shape, np.int64), 0, 0
    for n, oh, ow, o in np.ndindex(*shape):
        for i, j, c in np.ndindex(*w.shape[:3]):
            h = oh * stride[0] + i * dilation[0] - padding[0]
            v = ow * stride[1] + j * dilation[1] - padding[1]
            if 0 <= h < x.shape[1] and 0 <= v < x.shape[2]:
                dense += 1
                if mc[n, oh, ow, o] and ex[n, h, v, c] and ew[i, j, c, o]:
                    effectual += 1
                    result[n, oh, ow, o] += int(x[n, h, v, c]) * int(w[i, j, c, o])
    return result, {"macs_dense": dense, "macs_effectual": effectual}


@pytest.mark.parametrize(
    ("stride", "padding", "dilation"),
    [(1, 0, 1), (1, 1, 1), (2, 1, 1), ((2, 1), (0, 2), (1, 2)), (1, (3, 4), 2), (3, 2, (2, 1))],
)
def test_conv2d(stride, padding, dilation):
    rng = np.random.default_rng(5)
    x, w = sparse(rng, (2, 5, 6, 3)), sparse(rng, (3, 2, 3, 4))
    shape = conv2d(x, w, stride, padding, dilation).shape
    masks = rng.random(x.shape) < 0.7, rng.random(w.shape) < 0.7, rng.random(shape) < 0.7
    pairs = [(v, v) if isinstance(v, int) else v for v in (stride, padding, dilation)]
    ex, ew = masks[0] & (x != 0), masks[1] & (w != 0)
    result, count = naive_conv(x, w, *pairs, shape, ex, ew, masks[2])
    assert np.array_equal(conv2d(x, w, stride, padding, dilation, *masks), result)
    assert conv2d_macs(x, w, stride, padding, dilation, *masks) == count
    _, count = naive_conv(x, w, *pairs, shape, masks[0], masks[1], masks[2])
    assert conv2d_macs(x, w, stride, padding, dilation, *masks, dense=True) == count


def test_conv2d_of_one_tap_is_a_product():
    rng = np.random.default_rng(6)
    x, w = sparse(rng, (1, 4, 5, 7)), sparse(rng, (1, 1, 7, 3))
    assert np.array_equal(conv2d(x, w).reshape(20, 3), masked_matmul(x.reshape(20, 7), w[0, 0]))
    assert conv2d_macs(x, w) == macs(x.reshape(20, 7), w[0, 0])
    assert conv2d(x, w).shape == (1, 4, 5, 3)


# ---------------------------------------------------------------------- requantisation


def test_requantise_by_hand():
    # halves go to the even neighbour, on both sides of zero
    acc = np.array([-5, -3, -1, 1, 3, 5, 7])
    assert requantise(acc, 0, 1, 1, -128, 127).tolist() == [-2, -2, 0, 0, 2, 2, 4]
    assert requantise(acc, 1, 3, 0, -4, 20).tolist() == [-4, -4, 0, 6, 12, 18, 20]
    assert requantise(np.array([[7, 7]]), 100, 1, 0, 0, 255, np.array([[True, False]])).tolist() == [[107, 0]]


def test_requantise_random():
    rng = np.random.default_rng(0)
    for _ in range(20):
        acc = rng.integers(-(1 << 31), 1 << 31, (6, 5)) >> rng.integers(0, 31, (6, 5))
        bias = rng.integers(-(1 << 31), 1 << 31, 5) >> rng.integers(0, 31, 5)
        mult, shift = rng.integers(0, 1 << 24, 5) >> rng.integers(0, 24, 5), rng.integers(0, 48, 5)
        low, high = sorted(rng.integers(-(1 << 15), 1 << 15, 2).tolist())
        result = requantise(acc, bias, mult, shift, low, high)
        for (r, c), value in np.ndenumerate(acc):
            exact = Fraction((int(value) + int(bias[c])) * int(mult[c]), 1 << int(shift[c]))
            assert result[r, c] == min(max(round(exact), low), high)


def test_requantise_extremes():
    for acc in (-(1 << 31), (1 << 31) - 1):
        for shift in (0, 47):
            exact = round(Fraction(acc * 2 * ((1 << 24) - 1), 1 << shift))
            assert requantise(np.array([acc]), acc, (1 << 24) - 1, shift, -(1 << 60), 1 << 60).tolist() == [exact]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mult": 1 << 24}, "mult must be from 0 to 16777215, not 16777216"),
        ({"mult": -1}, "mult must be from 0 to 16777215, not -1"),
        ({"shift": [1, 48]}, "shift must be from 0 to 47, not 48"),
        ({"bias": 1 << 31}, "bias must be from -2147483648 to 2147483647, not 2147483648"),
        ({"acc": [[1 << 31, 0]]}, "acc must be from"),
        ({"bias": [1, 2, 3]}, r"bias must be one number or have shape \(2,\), not \(3,\)"),
        ({"low": 5}, r"low must be at most high \(4\), not 5"),
        ({"mask": np.ones(2, bool)}, r"mask must have shape \(1, 2\)"),
    ],
)
def test_requantise_errors(change, message):
    values = {"acc": [[1, 2]], "bias": 0, "mult": 1, "shift": 0, "low": 0, "high": 4, **change}
    with pytest.raises(MaskworkValueError, match=message):
        requantise(**values)
    with pytest.raises(MaskworkTypeError, match="acc must be integers, not float64"):
        requantise([1.5], 0, 1, 0, 0, 4)


# ---------------------------------------------------------------------- packets by hand


def pad(words, beat):
    return list(words) + [0] * (-len(words) % beat)


def bitmap(bits):
    words = [0] * -(-len(bits) // 32)
    for i, bit in enumerate(bits):
        words[i // 32] |= int(bit) << i % 32
    return words


def packed(values, width):
    per_word = 32 // width
    words = [0] * -(-len(values) // per_word)
    for i, value in enumerate(values):
        words[i // per_word] |= (int(value) & ((1 << width) - 1)) << width * (i % per_word)
    return words


class Machine:
    """A golden accelerator fed with packets; replies come back decoded."""

    def __init__(self, config, begin=True):
        self.config, self.golden = config, Interpreter(config)
        if begin:
            assert self.begin() == []

    def send(self, *packets):
        words, ends = [], []
        for packet in packets:
            words += packet
            ends.append(len(words))
        return [self.decode(r) for r in self.golden.execute(np.array(words, np.uint32), ends)]

    def command(self, op, **fields):
        return pad(COMMANDS[op].encode(fields), self.config.stream_words)

    def begin(self):
        return self.send(self.command(Op.BEGIN, version=ISA_VERSION, config=self.config.hash))

    def rows(self, matrix, width, dense, present=None):
        words, beat = [], self.config.stream_words
        for r, row in enumerate(np.atleast_2d(matrix)):
            bits = np.ones(len(row), bool) if dense else (row != 0) if present is None else present[r]
            words += [] if dense else pad(bitmap(bits), beat)
            words += pad(packed(row[bits], width), beat)
        return words

    def load_a(self, matrix, dense=None, present=None, **fields):
        dense = ("a" not in self.config.skip) if dense is None else dense
        fields = {"clusters": 1, "segments": len(matrix), "length": np.shape(matrix)[1], "dense": dense, **fields}
        return self.command(Op.LOAD_A, **fields) + self.rows(matrix, self.config.a_width, dense, present)

    def load_b(self, matrix, dense=None, present=None, **fields):
        dense = ("b" not in self.config.skip) if dense is None else dense
        fields = {"clusters": 1, "rows": len(matrix), "columns": np.shape(matrix)[1], "dense": dense, **fields}
        fields = {"lanes": (1 << self.config.lanes_per_cluster) - 1, **fields}
        return self.command(Op.LOAD_B, **fields) + self.rows(matrix, self.config.b_width, dense, present)

    def load_c(self, mask, **fields):
        fields = {"clusters": 1, "rows": len(mask), "columns": np.shape(mask)[1], **fields}
        data = [w for row in mask for w in pad(bitmap(row), self.config.stream_words)]
        return self.command(Op.LOAD_C, **fields) + data

    def load_p(self, bias, mult, shift, low, high, **fields):
        data = []
        for b, m, s in zip(bias, mult, shift, strict=True):
            data += [int(b) & 0xFFFFFFFF, int(m) | int(s) << 24]
        fields = {"clusters": 1, "columns": len(bias), "low": low, "high": high, **fields}
        fields = {"lanes": (1 << self.config.lanes_per_cluster) - 1, **fields}
        return self.command(Op.LOAD_P, **fields) + pad(data, self.config.stream_words)

    def run(self, rows, columns, **fields):
        """A product by default: row r is segment r, one tap."""
        fields = {"rows": rows, "columns": columns - 1, "clusters": 1, "m0": rows - 1, "m0_seg": 1, "x_limit": 1,
                  "y_limit": 1, "first": 1, "final": 1, **fields}  # fmt: skip
        return self.command(Op.RUN, **fields)

    def multiplies(self):
        (reply,) = self.send(self.command(Op.READ_COUNTERS))
        assert not any(v for name, v in reply.items() if name not in ("multiply", "reply"))
        return reply["multiply"]

    def decode(self, words):
        beat = self.config.stream_words
        assert words.dtype == np.uint32 and len(words) and len(words) % beat == 0
        words = words.tolist()
        kind = Reply(words[0] & 0xFF)
        layout = REPLIES[kind]
        reply = {"reply": kind, **layout.decode(words)}
        at = layout.beats(beat) * beat
        if kind == Reply.COUNTERS:
            reply |= {name: words[at + 2 * i] | words[at + 2 * i + 1] << 32 for i, name in enumerate(COUNTERS)}
            at += len(pad([0] * 2 * len(COUNTERS), beat))
        if kind == Reply.RESULT:
            columns = self.config.tile_columns
            kept = [i for i in range(columns) if words[at + i // 32] >> i % 32 & 1]
            assert len(kept) == reply["values"]
            at += len(pad(bitmap([0] * columns), beat))
            width = self.config.a_width if reply["post"] else 32 if self.config.acc_width <= 32 else 64
            reply["columns"] = np.zeros(columns, np.int64)
            for i, column in enumerate(kept):
                if width == 64:
                    value, total = words[at + 2 * i] | words[at + 2 * i + 1] << 32, 2 * len(kept)
                else:
                    per_word = 32 // width
                    value = words[at + i // per_word] >> width * (i % per_word) & ((1 << width) - 1)
                    total = -(-len(kept) // per_word)
                value -= (value >> (width - 1)) << width
                assert value != 0
                reply["columns"][column] = value
            at += len(pad([0] * total, beat)) if kept else 0
        assert len(words) == at
        return reply


def matrix(replies, columns):
    assert all(r["reply"] == Reply.RESULT for r in replies)
    assert [r["row"] for r in replies] == sorted(r["row"] for r in replies)
    assert all(not r["columns"][columns:].any() for r in replies)
    return np.array([r["columns"][:columns] for r in replies])


def faults(replies):
    assert all(r["reply"] == Reply.ERROR for r in replies)
    return [(Fault(r["fault"]), r["opcode"]) for r in replies]


SMALL = Config(lanes=4, lanes_per_cluster=2, pes_per_lane=2, slots=8, k_depth=32, a_depth=256, a_segments=64,
               c_rows=16, psum_rows=4)  # fmt: skip
WIDE = SMALL.replace(stream_words=4)


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
    assert np.array_equal(matrix(replies, n), masked_matmul(a, b, c_mask=mask))
    assert machine.multiplies() == macs(a, b, c_mask=mask)["macs_effectual"]


def test_dense_loads_and_skip():
    rng = np.random.default_rng(1)
    a, b = sparse(rng, (5, 20)), sparse(rng, (20, 9))
    for config in (SMALL, SMALL.replace(skip=""), SMALL.replace(a_width=18, b_width=14)):
        machine = Machine(config)
        packets = machine.load_a(a, dense=True), machine.load_b(b, dense=True), machine.run(5, 9)
        assert np.array_equal(matrix(machine.send(*packets), 9), a @ b)
        assert machine.multiplies() == macs(a, b, dense=True)["macs_effectual"]
    # bits that are set on zeros are multiplied; only presence skips
    machine = Machine(SMALL)
    present = rng.random(a.shape) < 0.5
    packets = machine.load_a(a, present=present), machine.load_b(b), machine.run(5, 9)
    assert np.array_equal(matrix(machine.send(*packets), 9), masked_matmul(a, b, present))
    assert machine.multiplies() == int(((present.astype(int)) @ (b != 0)).sum())


def test_counters_run_from_begin_to_sync():
    machine = Machine(SMALL)
    packets = machine.load_a([[1, 2]]), machine.load_b([[1], [1]]), machine.run(1, 1), machine.run(1, 1)
    machine.send(*packets)
    assert machine.multiplies() == 4
    machine.send(machine.command(Op.SYNC), machine.run(1, 1))
    assert machine.multiplies() == 4
    machine.begin()
    assert machine.multiplies() == 0


def test_clusters_have_buffers_of_their_own():
    rng = np.random.default_rng(2)
    a, b = sparse(rng, (2, 3, 8)), sparse(rng, (8, 4))
    machine = Machine(SMALL)
    replies = machine.send(
        machine.load_a(a[0], clusters=1), machine.load_a(a[1], clusters=2), machine.load_b(b, clusters=3),
        machine.run(3, 4, clusters=3),
    )  # fmt: skip
    assert [r["lane"] for r in replies] == [0] * 3 + [2] * 3
    assert np.array_equal(matrix(replies[:3], 4), a[0] @ b)
    assert np.array_equal(matrix(replies[3:], 4), a[1] @ b)


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
    assert np.array_equal(matrix(replies, 16), masked_matmul(a, b, c_mask=mask)[1:])
    # columns that a row's load leaves out become absent; a used bank is begun anew
    replies = machine.send(
        machine.load_b(b[:, :16]), machine.load_b(b[:5, :3], append=1), machine.run(10, 16, a_bank=1)
    )
    b[:5, 3:] = 0
    assert np.array_equal(matrix(replies, 16), a @ b)


def test_segments_of_different_lengths_wrap_around_the_weights():
    rng = np.random.default_rng(4)
    short, long = sparse(rng, (1, 7)), sparse(rng, (1, 75))
    b = sparse(rng, (32, 5))
    machine = Machine(SMALL)
    replies = machine.send(
        machine.load_a(short), machine.load_a(long, append=1), machine.load_b(b), machine.run(2, 5, k=30)
    )
    expected = [sum(int(a[0, e]) * b[(30 + e) % 32] for e in range(a.shape[1])) for a in (short, long)]
    assert np.array_equal(matrix(replies, 5), expected)
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
        assert np.array_equal(matrix(mine, 16), masked_matmul(a, b[:, 16 * lane :][:, :16], c_mask=mask))


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
        expected = requantise(a @ b[:, c], bias[c], mult[c], shift[c], -100, 99 + lane)
        assert np.array_equal(matrix([r for r in replies if r["lane"] == lane], 8), expected)
    assert machine.multiplies() == macs(a, b)["macs_effectual"]


def test_post_gives_unwanted_columns_no_bias():
    machine = Machine(SMALL)
    replies = machine.send(
        machine.load_a([[2], [0]]), machine.load_b([[3, 4, 5]]), machine.load_c([[1, 0, 1], [0, 1, 0]]),
        machine.load_p([10, 10, -5], [1, 1, 1], [0, 0, 0], 0, 255), machine.run(2, 3, use_c=1, post=1),
    )  # fmt: skip
    assert matrix(replies, 3).tolist() == [[16, 0, 5], [0, 10, 0]]
    assert all(r["post"] == 1 for r in replies)


def test_sums_wrap_to_the_accumulator():
    config = SMALL.replace(acc_width=18)
    machine = Machine(config)
    a, b = [[255] * 5], [[255, -256, 1]] * 5
    replies = machine.send(machine.load_a(a), machine.load_b(b), machine.run(1, 3))
    wrapped = [(v + (1 << 17)) % (1 << 18) - (1 << 17) for v in (255 * 255 * 5, -255 * 256 * 5, 1275)]
    assert matrix(replies, 3).tolist() == [wrapped]


def naive_rows(config, run, a, b, wanted):
    """The loop of RUN as the instruction set words it, one step at a time."""

    def step(state, level):
        return tuple(
            (v + run[f"{level}_{n}"] + 0x8000) % 0x10000 - 0x8000 for v, n in zip(state, names, strict=True)
        )

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
    assert np.array_equal(matrix(replies, 6), naive_rows(SMALL, run, a, b, wanted))


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
    assert np.array_equal(matrix(replies, 11), expected.reshape(-1, 11))
    count = conv2d_macs(x, w, stride, padding, dilation, c_mask=mask)["macs_effectual"]
    assert machine.multiplies() == count


# ---------------------------------------------------------------------- faults


def test_state_persists_between_calls_and_last_marks_beats():
    machine = Machine(WIDE)
    packet = machine.load_a([[1, 2]])
    last = [False] * (len(packet) // 4 - 1) + [True]
    assert machine.golden.execute(packet, last) == []
    packet = machine.load_b([[1], [1]])
    assert machine.golden.execute(packet, [len(packet)]) == []
    assert matrix(machine.send(machine.run(1, 1)), 1).tolist() == [[3]]
    assert machine.golden.execute([], []) == []


def test_execute_errors():
    golden = Interpreter(WIDE)
    with pytest.raises(MaskworkValueError, match="one dimension"):
        golden.execute(np.zeros((2, 4), np.uint32), [8])
    with pytest.raises(MaskworkTypeError, match="uint32"):
        golden.execute(np.zeros(4), [4])
    with pytest.raises(MaskworkValueError, match="0 to 2"):
        golden.execute([-1, 0, 0, 0], [4])
    for ends in ([3], [8], [2, 4], [], [4, 4], [0, 4]):
        with pytest.raises(MaskworkValueError, match=r"number of words \(4\)"):
            golden.execute(np.zeros(4, np.uint32), ends)
    for last in ([True, True], [False]):
        with pytest.raises(MaskworkValueError, match="ends must"):
            golden.execute(np.zeros(4, np.uint32), last)


def test_begin_refusals():
    machine = Machine(SMALL, begin=False)
    load = machine.load_a([[1]])
    begin = [Op.BEGIN, ISA_VERSION + 1, SMALL.hash ^ 1]
    assert faults(machine.send(load, machine.run(1, 1))) == [(Fault.NOT_BEGUN, 0x10), (Fault.NOT_BEGUN, 0x20)]
    assert faults(machine.send(begin)) == [(Fault.WRONG_VERSION, 1)]
    assert faults(machine.send([Op.BEGIN, ISA_VERSION, SMALL.hash ^ 1])) == [(Fault.WRONG_CONFIG, 1)]
    assert machine.begin() == []
    assert machine.send(load) == []
    # refused again: the program is over
    assert faults(machine.send(begin, machine.run(1, 1))) == [(Fault.WRONG_VERSION, 1), (Fault.NOT_BEGUN, 0x20)]
    assert len(machine.send(machine.command(Op.IDENTIFY))) == 1
    assert machine.begin() == [] and machine.send(load) == []


@pytest.mark.parametrize("config", [SMALL, WIDE], ids=["1 word", "4 words"])
def test_lengths_of_packets(config):
    machine, beat = Machine(config), config.stream_words
    for op, packet in ((0, [0] * beat), (0x77, [0x77] * beat * 3)):
        assert faults(machine.send(packet)) == [(Fault.UNKNOWN_OPCODE, op)]
    for op, layout in COMMANDS.items():
        whole = pad(layout.encode({}), beat)
        if len(whole) > beat:
            assert faults(machine.send(whole[:-beat])) == [(Fault.SHORT_PACKET, op)]
        if not layout.payload:
            assert faults(machine.send(whole + [0] * beat)) == [(Fault.LONG_PACKET, op)]
    # data too short or too long: the bank is empty, even one that held something
    a, b, run = machine.load_a([[1, 2, 0, 3, 4]]), machine.load_b([[1], [1]]), machine.run(1, 1)
    for bad, fault in ((a[:-beat], Fault.SHORT_PACKET), (a + [0] * beat, Fault.LONG_PACKET)):
        assert faults(machine.send(bad, b, run)) == [(fault, 0x10), (Fault.BANK_EMPTY, 0x20)]
        appended = machine.load_a([[1]], append=1)
        assert machine.send(a) == []
        broken = appended[:-beat] if fault == Fault.SHORT_PACKET else [*appended, *[0] * beat]
        assert faults(machine.send(broken, run)) == [(fault, 0x10), (Fault.BANK_EMPTY, 0x20)]
        machine.begin()
    p = machine.load_p([0], [1], [0], 0, 1)
    for op, packet in ((0x11, b), (0x12, machine.load_c([[1]])), (0x13, p)):
        for dense in (False, True):
            packet = machine.load_b([[1], [1]], dense=True) if dense and op == 0x11 else packet
            bad = packet[:-beat], packet + [0] * beat
            assert faults(machine.send(*bad)) == [(Fault.SHORT_PACKET, op), (Fault.LONG_PACKET, op)]
    machine.send(a, b, p[:-beat])
    assert faults(machine.send(machine.run(1, 1, post=1))) == [(Fault.BANK_EMPTY, 0x20)]
    assert len(machine.send(run)) == 1
    empty = machine.command(Op.LOAD_A, clusters=1, segments=1, length=1)
    assert faults(machine.send(empty)) == [(Fault.SHORT_PACKET, 0x10)]


@pytest.mark.parametrize(
    ("load", "fields"),
    [("load_a", f) for f in ({"clusters": 0}, {"clusters": 4}, {"segments": 0}, {"length": 0}, {"segments": 65})]
    + [("load_b", f) for f in ({"clusters": 5}, {"rows": 0}, {"k": 31}, {"lanes": 0}, {"lanes": 4}, {"columns": 0})]
    + [("load_b", {"columns": 17}), ("load_b", {"k": 65535})]
    + [("load_c", f) for f in ({"clusters": 0}, {"rows": 0}, {"rows": 17}, {"columns": 0}, {"columns": 17})]
    + [("load_p", f) for f in ({"clusters": 8}, {"lanes": 0}, {"lanes": 8}, {"columns": 0}, {"columns": 17})],
)
def test_bad_fields_of_loads(load, fields):
    machine = Machine(SMALL)
    good = {"load_a": [[[1], [2]]], "load_b": [[[1], [2]]], "load_c": [[[1], [1]]], "load_p": [[1], [1], [1], 0, 1]}
    packet = getattr(machine, load)(*good[load], **fields)
    assert faults(machine.send(packet)) == [(Fault.BAD_FIELD, packet[0] & 0xFF)]
    assert machine.send(getattr(machine, load)(*good[load])) == []


def test_bad_fields_that_the_configuration_makes():
    machine = Machine(SMALL.replace(skip="c", post=False))
    packets = machine.load_a([[1]], dense=False), machine.load_b([[1]], dense=False)
    assert faults(machine.send(*packets)) == [(Fault.BAD_FIELD, 0x10), (Fault.BAD_FIELD, 0x11)]
    assert faults(machine.send(machine.load_p([1], [1], [1], 0, 1))) == [(Fault.BAD_FIELD, 0x13)]
    assert machine.send(machine.load_a([[1]]), machine.load_b([[1]])) == []
    assert faults(machine.send(machine.run(1, 1, post=1))) == [(Fault.BAD_FIELD, 0x20)]
    assert len(machine.send(machine.run(1, 1))) == 1


def test_bad_fields_of_run():
    machine = Machine(SMALL)
    assert machine.send(machine.load_a([[1]]), machine.load_b([[1]])) == []
    bad = [
        machine.run(0, 1, m0=0), machine.run(1, 17), machine.run(1, 1, clusters=0), machine.run(1, 1, clusters=4),
        machine.run(9, 1, final=0), machine.run(9, 1, first=0), machine.run(5, 1, final=0, share=1),
    ]  # fmt: skip
    assert faults(machine.send(*bad)) == [(Fault.BAD_FIELD, 0x20)] * len(bad)
    assert machine.send(machine.run(8, 1, final=0), machine.run(4, 1, final=0, share=1)) == []
    assert len(machine.send(machine.run(9, 1), machine.run(5, 1, share=1))) == 9 + 10


def test_fresh_rule():
    machine = Machine(SMALL)
    a, b, c, data = machine.load_a([[1]]), machine.load_b([[1]]), machine.load_c([[1]]), [[1]]
    for code, load in ((0x10, machine.load_a), (0x11, machine.load_b), (0x12, machine.load_c)):
        assert faults(machine.send(load(data, append=1))) == [(Fault.BANK_EMPTY, code)]
        assert faults(machine.send(load(data), load(data))) == [(Fault.BANK_IN_USE, code)]
        # in one cluster is enough; the other bank and the other cluster are free
        assert faults(machine.send(load(data, clusters=3))) == [(Fault.BANK_IN_USE, code)]
        assert faults(machine.send(load(data, clusters=3, append=1))) == [(Fault.BANK_EMPTY, code)]
        assert machine.send(load(data, bank=1), load(data, clusters=2), load(data, append=1)) == []
    # the C bank is not used by this RUN, and stays fresh
    assert len(machine.send(machine.run(1, 1))) == 1
    assert faults(machine.send(machine.load_a([[1]], append=1))) == [(Fault.BANK_EMPTY, 0x10)]
    assert faults(machine.send(machine.load_b([[1]], append=1))) == [(Fault.BANK_EMPTY, 0x11)]
    assert faults(machine.send(c)) == [(Fault.BANK_IN_USE, 0x12)]
    # a used bank still runs, until it is loaded again
    assert len(machine.send(machine.run(1, 1, use_c=1), c, a, b, machine.run(1, 1, use_c=1))) == 2


def test_run_needs_loaded_banks():
    machine = Machine(SMALL)
    run, empty = machine.run, [(Fault.BANK_EMPTY, 0x20)]
    assert faults(machine.send(machine.load_a([[1]]), run(1, 1))) == empty
    assert machine.send(machine.load_b([[1]])) == []
    for fields in ({"a_bank": 1}, {"b_bank": 1}, {"use_c": 1}, {"post": 1}, {"clusters": 3}):
        assert faults(machine.send(run(1, 1, **fields))) == empty
    assert machine.send(machine.load_p([5], [1], [0], 0, 9), machine.load_p([6], [1], [0], 0, 9)) == []
    assert matrix(machine.send(run(1, 1, post=1)), 1).tolist() == [[7]]
    replies = machine.send(machine.command(Op.ABORT), run(1, 1))
    assert replies[0] == {"reply": Reply.ABORTED} and faults(replies[1:]) == empty
    machine.send(machine.load_a([[1]]), machine.load_b([[1]]))
    assert faults(machine.send(run(1, 1, post=1))) == empty
    machine.begin()
    assert faults(machine.send(run(1, 1))) == empty


def test_buffers_fill_up():
    config = SMALL.replace(a_depth=64, fetch_width=4)
    machine = Machine(config)
    # a full chunk takes 1 + 16/4 = 5 words, a chunk with one element 2, an empty one none
    full, one, none = np.ones((1, CHUNK), int), np.eye(1, CHUNK, dtype=int), np.zeros((1, CHUNK), int)
    fits = np.concatenate([full] * 12 + [one] * 2 + [none] * 40)
    assert machine.send(machine.load_a(fits)) == []
    assert machine.send(machine.load_a(none, append=1)) == []
    assert faults(machine.send(machine.load_a(one, append=1))) == [(Fault.BUFFER_FULL, 0x10)]
    assert faults(machine.send(machine.load_a(one, append=1))) == [(Fault.BANK_EMPTY, 0x10)]
    assert faults(machine.send(machine.load_a(np.concatenate([fits, one])))) == [(Fault.BUFFER_FULL, 0x10)]
    # a ragged last chunk: 3 elements take 2 words, 5 take 3
    dense = machine.load_a(np.ones((32, 3), int), dense=True), machine.load_a(np.ones((22, 5), int), dense=True, bank=1)
    assert faults(machine.send(*dense)) == [(Fault.BUFFER_FULL, 0x10)]
    # segments and rows of masks beyond the banks
    machine.begin()
    packets = machine.load_a([[0]] * 64), machine.load_a([[0]], append=1)
    assert faults(machine.send(*packets)) == [(Fault.BAD_FIELD, 0x10)]
    packets = machine.load_c([[1]] * 16), machine.load_c([[1]], append=1)
    assert faults(machine.send(*packets)) == [(Fault.BAD_FIELD, 0x12)]


# ---------------------------------------------------------------------- speed


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
        replies = machine.golden.execute(words, np.cumsum([len(p) for p in packets]))
        elapsed.append(time.perf_counter() - begin)
        replies = [machine.decode(r) for r in replies]
        if packets is product:
            result = np.concatenate([matrix(replies[:70], 64), matrix(replies[70:], 6)], axis=1)
            assert np.array_equal(result, a @ b)
        else:
            assert np.array_equal(matrix(replies, 64), conv2d(x, w, padding=1).reshape(-1, 64))
    # generous: a small machine that other work shares
    assert elapsed[0] < 1 and elapsed[1] < 2, elapsed
