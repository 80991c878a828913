"""Command check: what a command's header says, and whether the configuration has what it names."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from maskwork.gen.config import POST_MAX_SHIFT, Config
from maskwork.gen.isa import COMMANDS, KIND_BLOCKS, MAX_PROJECT, MAX_WINDOW, RANDOM_BITS, MaskKind, Op, VectorKind
from maskwork.rtl.banks import bank_flags
from maskwork.rtl.load_common import Load, load_layout

LOADS = {Op.LOAD_A: Load.A, Op.LOAD_B: Load.B, Op.LOAD_C: Load.C, Op.LOAD_P: Load.P}


class CommandCheck(wiring.Component):
    """Reads the first header words of a command. Results are registered: valid 2 cycles after the header.

    Members:
        header: the words.
        is_load, is_run, is_stream: kind of command; is_stream: VECTOR or MASK. is_replay: MASK of that kind.
        bad: a field lies outside what the configuration has.
        append, has_fresh: the load adds to its bank; its buffer has the rule that loaded data must be used.
        clusters: those selected.
        bank: the bank that a load fills, one-hot. needed: the banks that a RUN reads.
        load, run: fields for the loader and the clusters.
    """

    def __init__(self, config: Config):
        self._config = config
        super().__init__(
            {
                "header": In(data.ArrayLayout(32, 4 + config.stochastic)),
                "is_load": Out(1),
                "is_run": Out(1),
                "is_stream": Out(1),
                "is_replay": Out(1),
                "bad": Out(1),
                "append": Out(1),
                "has_fresh": Out(1),
                "clusters": Out(config.clusters),
                "bank": Out(bank_flags()),
                "needed": Out(bank_flags()),
                "load": Out(load_layout(config)),
                "run": Out(data.StructLayout({"a": 1, "b": 1, "c": 1, "use_c": 1})),
            }
        )

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("CommandCheck", self._config.hash)

    def _get(self, op: Op, name: str) -> Value:
        f = COMMANDS[op].field(name)
        value = self.header[f.word][f.lsb : f.lsb + f.width]
        return value.as_signed() if f.signed else value

    def elaborate(self, platform):
        m = Module()
        config = self._config
        get = self._get
        opcode = self.header[0][:8]
        clusters = get(Op.RUN, "clusters")
        problems: dict[Op, Value] = {
            Op.LOAD_A: self._outside(get(Op.LOAD_A, "segments"), config.a_segments)
            | self._outside(get(Op.LOAD_A, "length"), config.k_depth)
            | (Const("a" not in config.skip) & ~get(Op.LOAD_A, "dense")),
            Op.LOAD_B: self._outside(get(Op.LOAD_B, "rows"), config.k_depth)
            | (get(Op.LOAD_B, "rows") + get(Op.LOAD_B, "k") > config.k_depth)
            | self._apart_problem(get)
            | self._outside(get(Op.LOAD_B, "columns"), config.tile_columns)
            | self._outside(get(Op.LOAD_B, "lanes"), (1 << config.lanes_per_cluster) - 1)
            | (Const("b" not in config.skip) & ~get(Op.LOAD_B, "dense")),
            Op.LOAD_C: self._outside(get(Op.LOAD_C, "rows"), config.c_rows)
            | self._outside(get(Op.LOAD_C, "columns"), config.tile_columns),
            Op.LOAD_P: self._outside(get(Op.LOAD_P, "columns"), config.tile_columns)
            | self._outside(get(Op.LOAD_P, "lanes"), (1 << config.lanes_per_cluster) - 1)
            | (not config.post)
            | (get(Op.LOAD_P, "stochastic") & ((get(Op.LOAD_P, "seed") == 0) if config.stochastic else 1)),
            Op.RUN: self._run_problem(get),
        }
        lists = {
            Op.LOAD_A: ("segments", "length"),
            Op.LOAD_B: ("rows", "columns"),
            Op.LOAD_C: ("rows", "columns"),
            Op.LOAD_P: (None, "columns"),
        }
        load = self.load
        m.d.sync += [
            self.is_load.eq(0),
            self.is_run.eq(opcode == Op.RUN),
            self.is_stream.eq(0),
            self.is_replay.eq((get(Op.MASK, "kind") == MaskKind.REPLAY) if config.blocks else 0),
            self.clusters.eq(clusters),
            self.bad.eq(0),
            self.bank.eq(0),
            self.needed.eq(0),
            self.append.eq(0),
            self.has_fresh.eq(0),
            load.bank.eq(get(Op.LOAD_A, "bank")),
            load.append.eq(get(Op.LOAD_A, "append")),
            load.dense.eq(get(Op.LOAD_A, "dense")),
            load.k.eq(get(Op.LOAD_B, "k")),
            load.lanes.eq(get(Op.LOAD_P, "lanes")),
            load.low.eq(get(Op.LOAD_P, "low")),
            load.high.eq(get(Op.LOAD_P, "high")),
            self.run.a.eq(get(Op.RUN, "a_bank")),
            self.run.b.eq(get(Op.RUN, "b_bank")),
            self.run.c.eq(get(Op.RUN, "c_bank")),
            self.run.use_c.eq(get(Op.RUN, "use_c")),
        ]
        if config.stochastic:
            m.d.sync += load.seed.eq(Mux(get(Op.LOAD_P, "stochastic"), get(Op.LOAD_P, "seed"), 0))
        beyond = clusters[config.clusters :].any() | (clusters == 0)
        with m.Switch(opcode):
            for op, kind in LOADS.items():
                name = op.name[-1].lower()
                count, length = lists[op]
                with m.Case(op):
                    m.d.sync += [
                        self.is_load.eq(1),
                        self.bad.eq(problems[op] | beyond),
                        self.bank[name].eq(1 << get(op, "bank")),
                        self.has_fresh.eq(op != Op.LOAD_P),
                        load.kind.eq(kind),
                        load.length.eq(get(op, length)),
                        load.count.eq(get(op, count) if count else 1),
                    ]
                    if op != Op.LOAD_P:
                        m.d.sync += self.append.eq(get(op, "append"))
                    if op == Op.LOAD_B:
                        m.d.sync += load.lanes.eq(get(op, "lanes"))
            with m.Case(Op.RUN):
                m.d.sync += [
                    self.bad.eq(problems[Op.RUN] | beyond),
                    self.needed.a.eq(1 << get(Op.RUN, "a_bank")),
                    self.needed.b.eq(1 << get(Op.RUN, "b_bank")),
                    self.needed.c.eq(get(Op.RUN, "use_c") << get(Op.RUN, "c_bank")),
                    self.needed.p.eq(get(Op.RUN, "post") << get(Op.RUN, "b_bank")),
                ]
            if config.vector:
                with m.Case(Op.VECTOR):
                    m.d.sync += [self.is_stream.eq(1), self.bad.eq(self._vector_problem(m))]
            if config.blocks:
                with m.Case(Op.MASK):
                    m.d.sync += [self.is_stream.eq(1), self.bad.eq(self._mask_problem(m))]
        return m

    def _vector_problem(self, m) -> Value:
        """What is wrong with a VECTOR, a cycle after its header."""
        bad = Signal(name="vector_bad")
        m.d.sync += bad.eq(
            self._outside(self._get(Op.VECTOR, "window"), MAX_WINDOW)
            | (self._get(Op.VECTOR, "count") == 0)
            | (self._get(Op.VECTOR, "kind") >= len(VectorKind))
            | (self._get(Op.VECTOR, "shift") > POST_MAX_SHIFT)
        )
        return bad

    def _mask_problem(self, m) -> Value:
        """What is wrong with a MASK, a cycle after its header."""
        config = self._config
        kind, level, length = (self._get(Op.MASK, name) for name in ("kind", "level", "length"))
        above = level[config.a_width - 1 :]  # bits that a value's magnitude does not have
        magnitude = (level == 0) | above.any()
        stores, bitmaps = self._get(Op.MASK, "store"), ~self._get(Op.MASK, "values")
        no_seed = Signal()
        m.d.comb += no_seed.eq(self._get(Op.MASK, "seed") == 0)
        problems: dict[MaskKind, Value] = {
            MaskKind.GREATER: above.any() & ~above.all(),
            MaskKind.MAGNITUDE: magnitude,
            MaskKind.PRUNE: magnitude | no_seed,
            MaskKind.DROPOUT: (level == 0) | level[RANDOM_BITS:].any() | no_seed,
            MaskKind.REPLAY: stores,
            MaskKind.NORMS: stores | bitmaps | (length > config.norm_channels),
            MaskKind.PROJECT: stores | bitmaps | (length > MAX_PROJECT) | no_seed,
        }
        of_kind, bad = Signal(), Signal(name="mask_bad")
        m.d.comb += of_kind.eq(1)  # of a kind that is not built
        with m.Switch(kind):
            for k, problem in problems.items():
                if KIND_BLOCKS[k] in config.blocks:
                    with m.Case(k):
                        m.d.comb += of_kind.eq(problem)
        m.d.sync += bad.eq(
            of_kind
            | (length == 0)
            | (self._get(Op.MASK, "rows") == 0)
            | (self._get(Op.MASK, "slot") >= config.mask_slots)
            | (stores & Const("store" not in config.blocks))
        )
        return bad

    @staticmethod
    def _outside(value: Value, most: int) -> Value:
        return (value == 0) | (value > most)

    def _apart_problem(self, get) -> Value:
        """A LOAD_B for lanes that share their weights: for both of each pair, or for single lanes, with their share."""
        config = self._config
        if config.weight_lanes == 1:
            return Const(0, 1)
        lanes = get(Op.LOAD_B, "lanes")[: config.lanes_per_cluster]
        first, second = lanes[0::2], lanes[1::2]
        end = get(Op.LOAD_B, "rows") + get(Op.LOAD_B, "k")
        return (first != second) & ((first & second).any() | (end > config.apart.k_depth))

    def _run_problem(self, get) -> Value:
        config = self._config
        rows = get(Op.RUN, "rows")
        shared_rows = Mux(get(Op.RUN, "share"), config.psum_rows, config.psum_rows * config.lanes_per_cluster)
        keeps = ~(get(Op.RUN, "first") & get(Op.RUN, "final"))
        problem = (rows == 0) | (keeps & (rows > shared_rows)) | (get(Op.RUN, "columns") >= config.tile_columns)
        return problem if config.post else problem | get(Op.RUN, "post")
