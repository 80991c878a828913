"""The host's end of the link, against a model of the board's end, over a line with faults."""

import random
import zlib

import numpy as np
import pytest
from maskwork.fpga.link.board_model import BoardModel, Loopback
from maskwork.fpga.link.faults import FaultRates, FaultyLine
from maskwork.fpga.link.frames import (
    ANSWER_WORDS,
    Answer,
    Kind,
    Splitter,
    encode_answer,
    encode_command,
    parse_answer,
    parse_command,
)
from maskwork.fpga.link.host import Host
from maskwork.fpga.link.line import NoAnswer
from maskwork.gen.errors import DeviceError, MaskworkValueError

KINDS = ("drop", "flip", "duplicate", "truncate")
IDENTITY = (300).to_bytes(4, "little") + bytes(n & 0xFF for n in range(300))


class Plus:
    """Answers every packet with its words plus 1."""

    def execute(self, words, last):
        return np.asarray(words) + np.uint32(1), np.asarray(last)


class Mute:
    """Answers nothing."""

    def execute(self, words, last):
        return np.zeros(0, np.uint32), np.zeros(0, bool)


class Watched(Loopback):
    """A line that knows what was sent and what was believed, in both directions."""

    def __init__(self, board, rates=None, seed=0):
        super().__init__(board, rates, seed)
        self.sent = {"to_board": Splitter(), "from_board": Splitter()}
        self.believed = {"to_board": Splitter(), "from_board": Splitter()}
        self.bodies = {("sent", name): set() for name in self.sent} | {("believed", name): set() for name in self.sent}
        receive = board.receive

        def watched(data):
            answers = receive(data)
            self._note("believed", "to_board", data)
            self._note("sent", "from_board", answers)
            return answers

        board.receive = watched

    def _note(self, side, name, data):
        self.bodies[side, name].update(getattr(self, side)[name].feed(data))

    def write(self, data):
        self._note("sent", "to_board", data)
        super().write(data)

    def read(self, timeout):
        data = super().read(timeout)
        self._note("believed", "from_board", data)
        return data

    def check(self):
        """Nothing was taken for a frame that had not been sent."""
        for name in self.sent:
            assert self.bodies["believed", name] <= self.bodies["sent", name]


def packets(total, longest, seed):
    rng = random.Random(seed)
    ends = [0]
    while ends[-1] < total:
        ends.append(ends[-1] + rng.randint(1, longest))
    words = np.random.default_rng(seed).integers(0, 1 << 32, ends[-1], dtype=np.uint32)
    words[::5] = 0x7E7D5E7E  # full of what must be escaped
    return words, ends[1:]


def opened(board, rates=None, seed=0, **options):
    line = Watched(board, rates, seed)
    host = Host(line, **options)
    host.reset()
    return host, line


# ---------------------------------------------------------------------- frames


def test_a_frame_is_what_the_protocol_says():
    control = 5 | 1023 << 10 | 2 << 20 | 1 << 28 | 1 << 29
    body = b"".join(word.to_bytes(4, "little") for word in (control, 0x7D7E0001, 0xFFFFFFFF))
    body += zlib.crc32(body).to_bytes(4, "little")
    escaped = b"".join(bytes([0x7D, byte ^ 0x20]) if byte in (0x7D, 0x7E) else bytes([byte]) for byte in body)
    words = (0x7D7E0001).to_bytes(4, "little") + b"\xff" * 4
    frame = encode_command(Kind.DATA, 5 + 1024, 1023, words, True, True)
    assert frame == b"\x7e" + escaped + b"\x7e"
    (found,) = Splitter().feed(frame)
    command = parse_command(found)
    assert command is not None
    assert (command.kind, command.seq, command.ack, command.words) == (Kind.DATA, 5, 1023, words)
    assert command.end and command.again


@pytest.mark.parametrize("count", [0, 1, 63, 64])
def test_answers_survive_in_any_pieces(count):
    words = np.random.default_rng(count).choice(np.array([0x7D, 0x7E, 0x5E, 0x5D], np.uint8), 4 * count).tobytes()
    answer = Answer(Kind.DATA, 1000, 24, words, True, 511, 200)
    data = b"noise\x7d" + encode_answer(answer) + b"\x7e\x7e" + encode_answer(answer)[1:]  # one flag between two
    splitter = Splitter()
    bodies = [body for byte in data for body in splitter.feed(bytes([byte]))]
    assert [parse_answer(body) for body in bodies] == [answer, answer]
    assert splitter.dropped == 1


def test_every_single_fault_in_a_frame_is_noticed():
    frame = encode_answer(Answer(Kind.DATA, 7, 9, b"\x00\x7e\x12\x7d" * 3, False, 100, 0))
    (good,) = Splitter().feed(frame)
    for place in range(1, len(frame) - 1):
        before, byte, after = frame[:place], frame[place], frame[place + 1 :]
        flipped = [before + bytes([byte ^ 1 << bit]) + after for bit in range(8)]
        for damaged in [before + after, before + bytes([byte, byte]) + after, before + b"\x7e", *flipped]:
            splitter = Splitter()
            assert splitter.feed(damaged + b"\x7e") == []
            assert splitter.dropped >= (damaged != b"\x7e\x7e")  # of a frame that is gone nothing is left to see
            assert splitter.feed(frame) == [good]  # and the next is found


def test_wrong_lengths_are_no_frames():
    (body,) = Splitter().feed(encode_command(Kind.DATA, words=bytes(8)))
    assert parse_command(body[:-4]) is None
    assert parse_answer(body + b"\0\0\0\0") is None
    assert parse_answer(body[:4]) is None
    splitter = Splitter()
    assert splitter.feed(b"\x7e" + bytes(5000) + b"\x7e" + encode_command(Kind.RESET)) != []


# ---------------------------------------------------------------------- faults


@pytest.mark.parametrize("kind", KINDS)
def test_faults_are_as_asked_and_do_not_depend_on_chunks(kind):
    data = bytes(np.random.default_rng(1).integers(0, 256, 20000, dtype=np.uint8))
    whole, parts = (FaultyLine(FaultRates(**{kind: 0.01}), 4) for _ in range(2))
    damaged = whole(data)
    assert damaged == b"".join(parts(data[n : n + 7]) for n in range(0, len(data), 7))
    assert whole.counts == parts.counts and 0 < whole.counts[kind] < 400
    count = whole.counts[kind]
    if kind == "truncate":
        assert len(damaged) < len(data) - count
    else:
        assert len(damaged) == len(data) + {"drop": -count, "flip": 0, "duplicate": count}[kind]
    if kind == "flip":
        assert sum(a != b for a, b in zip(damaged, data, strict=True)) == count
    with pytest.raises(MaskworkValueError, match=r"flip: a fault's rate must be from 0 to 0.1 a byte, not 2"):
        FaultRates(flip=2)


@pytest.mark.parametrize("merging", [None, 11], ids=["prompt", "random"])
@pytest.mark.parametrize("kind", [None, *KINDS, "all"])
def test_nothing_is_lost_doubled_or_unnoticed(kind, merging):
    rate = 0.002
    rates = FaultRates() if kind is None else FaultRates.each(rate) if kind == "all" else FaultRates(**{kind: rate})
    board = BoardModel(Plus, IDENTITY, seed=merging)
    host, line = opened(board, rates, seed=5)
    assert host.read_identity() == IDENTITY
    received = 0
    for turn in range(3):
        words, ends = packets(4000, (200, 2, 1500)[turn], turn)
        replies, reply_ends = host.exchange(words.tobytes(), ends, quiet=30)
        np.testing.assert_array_equal(np.frombuffer(replies, "<u4"), words + np.uint32(1))
        assert reply_ends == ends
        received += len(words)
        assert board.taken == received
    done = host.statistics
    assert done.words_sent == done.words_received == received
    line.check()
    assert board.resets == 1
    injected = {name: line.to_board.counts[name] + line.from_board.counts[name] for name in KINDS}
    for name in KINDS:
        wanted = kind in (name, "all")
        assert (line.to_board.counts[name] > 20) == wanted and (line.from_board.counts[name] > 20) == wanted
    if kind is None:
        assert (done.words_repeated, done.answers_dropped, done.board_dropped, done.gaps) == (0, 0, 0, 0)
        assert done.frames < received
    else:
        assert board.frames_dropped > 0 and done.answers_dropped > 0 and done.gaps > 0 and done.words_repeated > 0
        assert done.answers_dropped + board.frames_dropped <= 2 * sum(injected.values())


def test_words_leave_in_full_frames_and_are_acknowledged_once():
    board = BoardModel(Plus)
    host, _ = opened(board)
    words, ends = packets(20000, 20000, 1)
    host.exchange(words.tobytes(), ends)
    assert host.statistics.frames - host.statistics.polls <= len(words) / ANSWER_WORDS + len(ends) + 10
    assert host.statistics.bytes_out < 4 * len(words) * 1.35


def test_a_reply_that_is_known_to_be_the_last_ends_the_exchange():
    host, line = opened(BoardModel(Plus, seed=1))
    left = [3]

    def done(words, end):
        left[0] -= end
        return not left[0]

    before = line.time()
    replies, ends = host.exchange(bytes(40), [3, 5, 10], done)
    assert (len(replies), ends) == (40, [3, 5, 10])
    assert host.exchange(b"", [], quiet=2) == (b"", [])
    assert line.time() - before < 0.2


def test_beats_of_several_words_and_a_small_buffer():
    host, _ = opened(BoardModel(Plus, stream_words=4, buffer_words=20, seed=3), FaultRates.each(0.001), 2)
    words = np.arange(4000, dtype=np.uint32)
    ends = list(range(40, 4001, 40))
    replies, reply_ends = host.exchange(words.tobytes(), ends, quiet=30)
    np.testing.assert_array_equal(np.frombuffer(replies, "<u4"), words + np.uint32(1))
    assert reply_ends == ends


def test_a_host_that_died_in_a_frame_is_forgotten():
    board = BoardModel(Plus)
    host, line = opened(board)
    host.exchange(bytes(400), [100])
    line.write(encode_command(Kind.DATA, 100, words=bytes(200))[:77])
    again = Host(line)
    again.reset()
    assert (board.resets, board.taken, board.frames_dropped) == (2, 0, 0)
    assert again.exchange(bytes(8), [2]) == (b"\1\0\0\0" * 2, [2])


# ---------------------------------------------------------------------- what goes wrong


def test_a_board_that_does_not_answer():
    board = BoardModel(Plus)
    host, line = opened(board, name="serial:X", answer_timeout=1.5)
    board.receive = lambda data: b""
    before = line.time()
    with pytest.raises(NoAnswer, match=r"serial:X: no answer for 1.5 s, after 0 of 10 words"):
        host.exchange(bytes(40), [10])
    assert 1.5 <= line.time() - before < 5
    for ask in (host.reset, host.read_identity):
        with pytest.raises(NoAnswer, match=r"serial:X: no answer within 1.5 s: not a maskwork board"):
            ask()
    board.receive = lambda data: bytes(np.random.default_rng(len(data)).integers(0, 256, 50, dtype=np.uint8))
    with pytest.raises(NoAnswer):
        host.reset()


def test_another_version_of_the_link():
    with pytest.raises(DeviceError, match=r"version 2 of the link is on the board, 1 here"):
        opened(BoardModel(Plus, version=2))


def test_an_accelerator_that_is_stuck():
    host, _ = opened(BoardModel(Mute), patience=3)
    assert host.exchange(bytes(40), [10]) == (b"", [])  # nothing was expected
    with pytest.raises(DeviceError, match=r"no word has moved for 3 s: 10 of 10 taken, 0 received"):
        host.exchange(bytes(40), [10], lambda words, end: True)


def test_a_board_that_was_reset_meanwhile():
    board = BoardModel(Plus)
    host, _ = opened(board)
    host.exchange(bytes(4 * 100), [100])
    board.receive(encode_command(Kind.RESET, 1))
    with pytest.raises(DeviceError, match=r"lost count of its words.*another program"):
        host.exchange(bytes(40), [10])
    host.reset()
    assert host.exchange(bytes(8), [2])[1] == [2]


@pytest.mark.parametrize(
    ("identity", "message"),
    [(b"", "impossible length, 4 bytes"), (bytes(8), "impossible length, 4 bytes"),
     (b"\xff" * 8, "impossible length"), ((500).to_bytes(4, "little") + bytes(80), "ends after 84 of 504 bytes")],
)  # fmt: skip
def test_identities_that_are_none(identity, message):
    host, _ = opened(BoardModel(Plus, identity))
    with pytest.raises(DeviceError, match=message):
        host.read_identity()
