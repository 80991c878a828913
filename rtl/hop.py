"""Registers on long wires: with ``hop_stages`` a cluster is so many cycles away from the sequencer, the loader and the
collector, in both directions, and a PE's weights so many from its lane; a lane is one away from its cluster.
"""

from types import SimpleNamespace
from typing import Any

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from maskwork.gen.config import Config
from maskwork.rtl.hierarchy import submodule
from maskwork.rtl.stream import SkidBuffer


class Hop(wiring.Component):
    """``o`` is ``i`` of ``stages`` cycles before.

    A module of its own, which synthesis for ECP5 keeps as it is: copies of a register, one near each place where it is
    needed, would else become one again.

    Args:
        shape: payload.
        stages: registers, 1 or more.
        init: reset value of the registers. A Hop of 1 bit with ``init`` = 1 and ``i`` = 0 is its parent's reset a cycle
            later.
        reset_less: no reset reaches the registers: for data that a flag elsewhere says the worth of.
        clears: a member ``clear`` makes the first register 0 instead of ``i``, in flip-flops without a LUT.
    """

    def __init__(self, shape, stages: int, init: int = 0, reset_less: bool = False, clears: bool = False):
        self._shape, self._stages, self._init = shape, stages, init
        self._reset_less, self._clears = reset_less, clears
        o = Out(shape, init=init) if init else Out(shape)  # pyright: ignore[reportCallIssue]
        super().__init__({"i": In(shape), "o": o, **({"clear": In(1)} if clears else {})})

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("Hop", repr(self._shape), self._stages, self._init, self._reset_less, self._clears)

    def elaborate(self, platform):
        m = Module()
        value = Value.cast(self.i)
        if self._clears:
            value = Mux(self.clear, 0, value)
        for stage in range(self._stages - (not self._reset_less)):
            after = Signal(len(value), name=f"stage{stage}", init=self._init, reset_less=self._reset_less)
            m.d.sync += after.eq(value)
            value = after
        m.d["comb" if self._reset_less else "sync"] += Value.cast(self.o).eq(value)
        return m


def lane_stages(config: Config) -> int:
    """Registers between a cluster and each of its lanes, in each direction."""
    return min(1, config.hop_stages)


def late_reset(m: Module, name: str, stages: int, platform, reset=None) -> Value | None:
    """``reset`` (the module's own: None) a cycle later if there are ``stages``: for a part of the design of its own."""
    if not stages:
        return reset
    submodule(m, f"{name}_reset", hop := Hop(1, 1, init=1), platform, reset)
    return hop.o


def near_side(
    m: Module,
    component: wiring.Component,
    stages: int,
    platform,
    direct: tuple[str, ...] = (),
    plain: tuple[str, ...] = (),
    reset: Value | None = None,
    cleared: str = "",
) -> Any:
    """Ports of ``component`` for its own use, with ``stages`` registers between them and the real ones.

    Each input is its register, each output (its initial value kept) is to be driven. Interfaces without a handshake are
    sources of what came; a stream that leaves (its name ``o``) passes a skid buffer for each stage, and ``idle`` is low
    until these are empty.

    Args:
        m: the component's module.
        component: it.
        stages: registers; 0: the ports are its own.
        platform: what its ``elaborate`` was given.
        direct: ports that stay as they are.
        plain: ports that are data: their registers (but one called ``valid``) need no reset, which has far to go.
        reset: of the registers; the module's own: None.
        cleared: port of data that leaves, one of ``plain``, whose other parts are to be 0 while its ``valid`` is low:
            who takes the words of several such ports needs an OR alone.
    """
    near = SimpleNamespace()
    ports = component.signature.members
    for name, member in ports.items():
        port = getattr(component, name)
        if member.is_signature:
            # inside, it is what outside the port is connected to
            shape = member.signature if member.flow == Out else member.signature.flip()
            setattr(near, name, wiring.flipped(port) if not stages else shape.create(path=(f"near_{name}",)))
        else:
            setattr(near, name, port if not stages and name != cleared else _like(port, f"near_{name}"))
    clear = ~getattr(near, cleared).valid if cleared else Const(0)
    if not stages:
        if cleared:
            given = Value.cast(getattr(near, cleared))
            m.d.comb += Value.cast(getattr(component, cleared)).eq(Mux(clear, 0, given))
        return near
    comes, goes, data_comes, data_goes, cleared_goes = [], [], [], [], []  # from where to where
    for name, member in ports.items():
        port, inner = getattr(component, name), getattr(near, name)
        if name in direct:
            setattr(near, name, port)
        if name in direct or is_stream(member):
            continue
        for part in _parts(port, member) if name in plain or member.is_signature else [None]:
            outside, inside = (port, inner) if part is None else (_part(port, part), _part(inner, part))
            if name == "idle":
                inside = near.rests = Signal(name="near_rests")
            kept = name in plain and part != "valid"
            if member.flow == In:
                (data_comes if kept else comes).append((Value.cast(outside), Value.cast(inside)))
            else:
                leaves = goes if not kept else cleared_goes if name == cleared else data_goes
                leaves.append((Value.cast(inside), Value.cast(outside)))
    for name, pairs, kept in (
        ("come", comes, False), ("go", goes, False), ("data_come", data_comes, True), ("data_go", data_goes, True),
        ("cleared_go", cleared_goes, True),
    ):  # fmt: skip
        if not pairs:
            continue
        sources, targets = Cat(source for source, _ in pairs), Cat(target for _, target in pairs)
        init = _init([target for _, target in pairs])
        hop = Hop(len(targets), stages, init, kept, clears=pairs is cleared_goes)
        submodule(m, f"{name}_hop", hop, platform, reset)
        if pairs is cleared_goes:
            m.d.comb += hop.clear.eq(clear)  # pyright: ignore[reportAttributeAccessIssue]
        m.d.comb += [hop.i.eq(sources), targets.eq(hop.o)]
    if not is_stream(ports["o"]):
        return near
    # packets that have left the component, but not its last buffer
    stream, waiting = near.o, []
    near.o = wiring.flipped(near.o)
    for stage in range(stages):
        buffer = SkidBuffer(component.o.payload.shape())  # pyright: ignore[reportAttributeAccessIssue]
        submodule(m, f"leave{stage}", buffer, platform, reset)
        wiring.connect(m, stream, buffer.i)
        stream = buffer.o
        waiting.append(buffer.o.valid)
    wiring.connect(m, stream, wiring.flipped(component.o))  # pyright: ignore[reportAttributeAccessIssue]
    # a register, as `idle` is: both speak of the same cycle
    waited = Signal(name="near_waited")
    m.d.sync += waited.eq(Cat(waiting).any())
    m.d.comb += near.rests.eq(near.idle & ~waited)
    return near


def is_stream(member: wiring.Member) -> bool:
    """Whether a port is a stream that leaves."""
    return member.is_signature and member.flow == Out


def _parts(port, member: wiring.Member) -> list[str | None]:
    """Members of an interface or fields of a structure by name, or the whole of anything else."""
    if member.is_signature:
        return [*member.signature.members]
    if isinstance(port, data.View) and isinstance(port.shape(), data.StructLayout):
        return [name for name, _ in port.shape()]  # pyright: ignore[reportAttributeAccessIssue]
    return [None]


def _part(port, name: str):
    return port[name] if isinstance(port, data.View) else getattr(port, name)


def _init(values: list[Value]) -> int:
    """Initial values side by side."""
    total = place = 0
    for value in values:
        total |= (value.init & (1 << len(value)) - 1 if isinstance(value, Signal) else 0) << place
        place += len(value)
    return total


def _like(port, name: str):
    raw = Value.cast(port)
    init = _init([raw])
    if isinstance(port, data.View):
        return data.View(port.shape(), Signal(len(raw), name=name, init=init))
    return Signal(port.shape(), name=name, init=init)
