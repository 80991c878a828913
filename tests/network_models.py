"""Random quantised ONNX models: small graphs of the supported operators, in QLinear, Integer and QDQ form."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TYPES = {np.dtype("uint8"): TensorProto.UINT8, np.dtype("int8"): TensorProto.INT8, np.dtype("int32"): TensorProto.INT32,
         np.dtype("float32"): TensorProto.FLOAT}  # fmt: skip


class Builder:
    """A graph that grows at its end; remembers every tensor's shape, and scale and zero point of integers."""

    def __init__(self, seed, opset=None):
        self.rng = np.random.default_rng(seed)
        self.opset = opset or int(self.rng.integers(13, 22))
        self.nodes, self.initializers, self.inputs, self.outputs = [], [], [], []
        self.shapes, self.grids = {}, {}
        self.count = 0

    # ---------------------------------------------------------------- pieces

    def name(self, stem):
        self.count += 1
        return f"{stem}{self.count}"

    def constant(self, value, stem="k"):
        name = self.name(stem)
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        self.shapes[name] = np.shape(value)
        return name

    def node(self, op, inputs, shape, outputs=1, **attributes):
        names = [self.name(op.lower()) for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, name=f"n_{names[0]}", **attributes))
        self.shapes[names[0]] = tuple(shape)
        return names[0]

    def grid(self, dtype=None, span=None):
        """A scale and a zero point of a type: numbers up to about ``span``."""
        dtype = np.dtype(dtype or self.rng.choice(["uint8", "int8"]))
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        zero = int(self.rng.choice([low, high, 0, self.rng.integers(low, high + 1), self.rng.integers(low, high + 1)]))
        span = span or float(self.rng.uniform(0.5, 4))
        return np.float32(span / 128), np.array(zero, dtype)

    def input(self, shape, dtype=None):
        scale, zero = self.grid(dtype)
        name = self.name("x")
        self.inputs.append(helper.make_tensor_value_info(name, TYPES[zero.dtype], shape))
        self.shapes[name], self.grids[name] = tuple(shape), (scale, zero)
        return name

    def weights(self, shape, axis, channels, density=0.5):
        """Integers, and names of their scale and zero point; per channel as often as not."""
        dtype = np.dtype(self.rng.choice(["int8", "int8", "uint8"]))
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        each = axis is not None and len(shape) != 3 and self.rng.random() < 0.5  # 3: see below
        # the reference's QLinearConv wants every zero point that it gets
        zero = np.zeros(channels, dtype) if each else np.array(self.rng.integers(low, high + 1), dtype)
        if not each and self.rng.random() < 0.5:
            zero = np.array(0, dtype)
        values = self.rng.integers(low, high + 1, shape)
        values = np.where(self.rng.random(shape) < density, values, zero if zero.ndim == 0 else 0).astype(dtype)
        scale = self.rng.uniform(0.001, 0.02, channels if each else ()).astype(np.float32)
        return self.constant(values, "w"), self.constant(scale, "s"), self.constant(zero, "z")

    def parameters(self, grid):
        return self.constant(grid[0], "s"), self.constant(grid[1], "z")

    def dequantise(self, name):
        scale, zero = self.parameters(self.grids[name])
        return self.node("DequantizeLinear", [name, scale, zero], self.shapes[name])

    def quantise(self, name, grid=None):
        grid = grid or self.grid()
        result = self.node("QuantizeLinear", [name, *self.parameters(grid)], self.shapes[name])
        self.grids[result] = grid
        return result

    def activation(self, name):
        """Perhaps a Relu or a Clip."""
        kind = self.rng.integers(0, 4)
        if kind == 0:
            return self.node("Relu", [name], self.shapes[name])
        if kind == 1:
            low, high = sorted(self.rng.uniform(-1, 6, 2).astype(np.float32))
            return self.node("Clip", [name, self.constant(low), self.constant(high)], self.shapes[name])
        return name

    # ---------------------------------------------------------------- layers

    def window(self, sizes, transposed=False):
        """Attributes of a convolution that fits, and the kernel."""
        rng, axes = self.rng, len(sizes)
        kernel = [int(rng.integers(1, min(4, size) + 1)) for size in sizes]
        strides = [int(rng.integers(1, 3)) for _ in sizes]
        dilations = [int(rng.integers(1, 3)) if (k - 1) * 2 + 1 <= size else 1
                     for k, size in zip(kernel, sizes, strict=True)]  # fmt: skip
        attributes = {"strides": strides, "dilations": dilations, "kernel_shape": kernel}
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        if rng.random() < 0.25 and not transposed and dilations == [1] * axes:
            attributes["auto_pad"] = str(rng.choice(["SAME_UPPER", "SAME_LOWER", "VALID"]))
            if attributes["auto_pad"] == "VALID":
                out = [(s - r) // st + 1 for s, r, st in zip(sizes, reach, strides, strict=True)]
            else:
                out = [-(-s // st) for s, st in zip(sizes, strides, strict=True)]
            return attributes, kernel, out
        pads = [int(rng.integers(0, k)) for k in kernel] + [int(rng.integers(0, k)) for k in kernel]
        attributes["pads"] = pads
        total = [pads[i] + pads[i + axes] for i in range(axes)]
        if transposed:
            extra = [int(rng.integers(0, s)) for s in strides]
            if any(extra):
                attributes["output_padding"] = extra
            out = [st * (s - 1) + e + r - t
                   for s, st, e, r, t in zip(sizes, strides, extra, reach, total, strict=True)]  # fmt: skip
        else:
            out = [(s + t - r) // st + 1 for s, t, r, st in zip(sizes, total, reach, strides, strict=True)]
        return attributes, kernel, out

    def conv(self, x, form):
        rng = self.rng
        n, cin, *sizes = self.shapes[x]
        transposed = form == "qdq" and rng.random() < 0.25
        for _ in range(20):
            attributes, kernel, out = self.window(sizes, transposed)
            if min(out) >= 1 and max(out) <= 14:
                break
        else:
            return x
        divisors = [g for g in range(1, cin + 1) if cin % g == 0]
        groups = int(rng.choice(divisors)) if rng.random() < 0.4 else 1
        cout = groups * int(rng.integers(1, 5))
        attributes["group"] = groups
        if transposed:
            shape, axis = (cin, cout // groups, *kernel), 1 if groups == 1 else None
        else:
            shape, axis = (cout, cin // groups, *kernel), 0
        w, ws, wz = self.weights(shape, axis, cout)
        result = (n, cout, *out)
        if form == "integer":
            zero = self.constant(self.grids[x][1])
            weights_zero = next(numpy_helper.to_array(t) for t in self.initializers if t.name == wz)
            inputs = [x, w, zero] + ([wz] if weights_zero.ndim == 0 else [])
            return self.node("ConvInteger", inputs, result, **attributes)
        if form == "qlinear":
            grid = self.grid(span=4)
            inputs = [x, *self.parameters(self.grids[x]), w, ws, wz, *self.parameters(grid)]
            if rng.random() < 0.5:
                inputs.append(self.constant(rng.integers(-3000, 3000, cout).astype(np.int32), "b"))
            y = self.node("QLinearConv", inputs, result, **attributes)
            self.grids[y] = grid
            return y
        real = self.node("DequantizeLinear", [w, ws, wz], shape, axis=axis if axis is not None else 0)
        inputs = [self.dequantise(x), real]
        if rng.random() < 0.5:
            inputs.append(self.constant(rng.normal(0, 1, cout).astype(np.float32), "b"))
        y = self.node("ConvTranspose" if transposed else "Conv", inputs, result, **attributes)
        if rng.random() < 0.3:
            parameters = [rng.uniform(0.5, 2, cout) * rng.choice([-1, 1], cout), rng.normal(0, 1, cout),
                          rng.normal(0, 1, cout), rng.uniform(0.5, 2, cout)]  # fmt: skip
            y = self.node("BatchNormalization", [y, *(self.constant(p.astype(np.float32)) for p in parameters)], result)
        return self.quantise(self.activation(y), self.grid(span=4))

    def matmul(self, x, form):
        rng = self.rng
        *lead, k = self.shapes[x]
        n = int(rng.integers(1, 20))
        shape = (*lead, n)
        if form in ("qlinear", "integer"):
            w, ws, wz = self.weights((k, n), None, n)
            if form == "integer":
                return self.node("MatMulInteger", [x, w, self.constant(self.grids[x][1]), wz], shape)
            grid = self.grid(span=4)
            inputs = [x, *self.parameters(self.grids[x]), w, ws, wz, *self.parameters(grid)]
            y = self.node("QLinearMatMul", inputs, shape)
            self.grids[y] = grid
            return y
        gemm = len(lead) == 1 and rng.random() < 0.6
        turned = gemm and rng.random() < 0.5
        w, ws, wz = self.weights((n, k) if turned else (k, n), 0 if turned else 1, n)
        real = self.node("DequantizeLinear", [w, ws, wz], (k, n), axis=0 if turned else 1)
        if gemm:
            inputs = [self.dequantise(x), real]
            if rng.random() < 0.6:
                inputs.append(self.constant(rng.normal(0, 1, n).astype(np.float32), "b"))
            y = self.node("Gemm", inputs, shape, transB=int(turned), alpha=float(rng.choice([1.0, 0.5])))
        else:
            y = self.node("MatMul", [self.dequantise(x), real], shape)
        return self.quantise(self.activation(y), self.grid(span=4))

    def add(self, x):
        shape = self.shapes[x]
        if self.rng.random() < 0.5:
            other = self.input(shape)
        else:
            values = self.rng.integers(0, 100, (*shape[:1], shape[1], *(1,) * (len(shape) - 2)))
            other = self.constant(values.astype(np.uint8))
            self.grids[other] = self.grid("uint8")
        y = self.node("Add", [self.dequantise(x), self.dequantise(other)], shape)
        return self.quantise(self.activation(y))

    def pool(self, x):
        rng = self.rng
        n, c, *sizes = self.shapes[x]
        kind = str(rng.choice(["MaxPool", "AveragePool", "GlobalAveragePool"]))
        if kind == "GlobalAveragePool":
            y = self.node(kind, [self.dequantise(x)], (n, c, *(1,) * len(sizes)))
            return self.quantise(y, self.grids[x] if rng.random() < 0.3 else None)
        kernel = [int(rng.integers(1, min(3, size) + 1)) for size in sizes]
        strides = [int(rng.integers(1, 3)) for _ in sizes]
        half = [int(rng.integers(0, k // 2 + 1)) for k in kernel]
        attributes = {"kernel_shape": kernel, "strides": strides, "pads": half * 2}
        if kind == "AveragePool":
            attributes["count_include_pad"] = int(rng.integers(0, 2))
        out = [(s + 2 * p - k) // st + 1 for s, p, k, st in zip(sizes, half, kernel, strides, strict=True)]
        if kind == "MaxPool" and rng.random() < 0.4 and self.shapes[x] in self.shapes.values():
            y = self.node(kind, [x], (n, c, *out), **attributes)
            self.grids[y] = self.grids[x]
            return y
        y = self.node(kind, [self.dequantise(x)], (n, c, *out), **attributes)
        return self.quantise(self.activation(y), self.grids[x] if rng.random() < 0.4 else None)

    def move(self, x):
        rng, shape = self.rng, self.shapes[x]
        kind = str(rng.choice(["Flatten", "Reshape", "Transpose", "Pad", "Concat", "Relu"]))
        real = self.dequantise(x)
        if kind == "Flatten":
            y = self.node(kind, [real], (shape[0], int(np.prod(shape[1:]))))
        elif kind == "Reshape":
            new = (shape[0], int(np.prod(shape[1:])))
            y = self.node(kind, [real, self.constant(np.array([new[0], -1], np.int64))], new)
        elif kind == "Transpose":
            order = [0, *(1 + rng.permutation(len(shape) - 1)).tolist()]
            y = self.node(kind, [real], [shape[i] for i in order], perm=order)
        elif kind == "Pad":
            pads = [0, 0, *rng.integers(0, 3, len(shape) - 2).tolist()] * 2
            inputs = [real, self.constant(np.array(pads, np.int64))]
            if rng.random() < 0.5:
                inputs.append(self.constant(np.float32(rng.uniform(-1, 1))))
            half = len(shape)
            y = self.node(kind, inputs, [s + pads[i] + pads[half + i] for i, s in enumerate(shape)])
        elif kind == "Concat":
            other = self.input(shape)
            y = self.node(kind, [real, self.dequantise(other)], (shape[0], 2 * shape[1], *shape[2:]), axis=1)
        else:
            y = self.node(kind, [real], shape)
        return self.quantise(y, self.grids[x] if rng.random() < 0.5 else None)

    def finish(self, *names):
        self.outputs = [helper.make_empty_tensor_value_info(name) for name in names]
        graph = helper.make_graph(self.nodes, "random", self.inputs, self.outputs, self.initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10)
        return onnx.shape_inference.infer_shapes(model, strict_mode=True)

    def feed(self):
        """Random inputs: about half of their elements are zero points."""
        values = {}
        for value in self.inputs:
            name, (_, zero) = value.name, self.grids[value.name]
            info = np.iinfo(zero.dtype)
            random = self.rng.integers(info.min, info.max + 1, self.shapes[name])
            values[name] = np.where(self.rng.random(self.shapes[name]) < 0.5, random, zero).astype(zero.dtype)
        return values


def random_model(seed):
    """A model and inputs for it."""
    build = Builder(seed)
    rng = build.rng
    flat = rng.random() < 0.25
    axes = int(rng.choice([1, 2, 2, 2]))
    if flat:
        shape = (int(rng.integers(1, 5)), *([int(rng.integers(1, 4))] if rng.random() < 0.3 else []),
                 int(rng.integers(1, 40)))  # fmt: skip
    else:
        shape = (int(rng.integers(1, 3)), int(rng.integers(1, 9)), *(int(v) for v in rng.integers(2, 10, axes)))
    x = build.input(shape)
    for _ in range(int(rng.integers(1, 5))):
        rank = len(build.shapes[x])
        images = rank in (3, 4) and not flat
        choice = rng.random()
        if images and choice < 0.45:
            x = build.conv(x, str(rng.choice(["qlinear", "qdq"])))
        elif choice < 0.45:
            x = build.matmul(x, str(rng.choice(["qlinear", "qdq"])))
        elif images and choice < 0.65:
            x = build.pool(x)
        elif choice < 0.8:
            x = build.add(x)
        elif images or rank == 2:
            x = build.move(x) if images else x
        if min(build.shapes[x]) < 1 or len(build.shapes[x]) < 2:
            break
    images = len(build.shapes[x]) in (3, 4) and not flat
    outputs = [x]
    if rng.random() < 0.3:
        last = build.conv(x, "integer") if images else build.matmul(x, "integer")
        outputs = [last]
    elif rng.random() < 0.3:
        outputs = [build.dequantise(x)]
    if not build.nodes:
        outputs = [build.conv(x, "qlinear") if images else build.matmul(x, "qlinear")]
    return build.finish(*outputs), build.feed()


def lstm_model(seed, steps=8, batch=1, inputs=12, hidden=10, direction="forward", layout=0, start=True, bias=True):
    """A quantised LSTM layer, and inputs for it."""
    build = Builder(seed, opset=19)
    rng, count = build.rng, 2 if direction == "bidirectional" else 1
    build.grids_start = np.float32(1 / 64), np.array(0, np.int8)
    shape = (batch, steps, inputs) if layout else (steps, batch, inputs)
    x = build.input(shape, "int8")
    build.grids[x] = build.grids_start
    names = [build.dequantise(x)]
    for columns in (inputs, hidden):
        values = rng.integers(-127, 128, (count, 4 * hidden, columns)) * (
            rng.random((count, 4 * hidden, columns)) < 0.5
        )
        each = rng.random() < 0.5
        scale = rng.uniform(0.5, 1.5, 4 * hidden if each else ()) / (64 * np.sqrt(columns))
        zero = np.zeros(np.shape(scale), np.int8)
        parameters = [build.constant(v) for v in (values.astype(np.int8), scale.astype(np.float32), zero)]
        names.append(build.node("DequantizeLinear", parameters, values.shape, axis=1))
    names.append(build.constant(rng.normal(0, 0.2, (count, 8 * hidden)).astype(np.float32)) if bias else "")
    feed = {}
    if start:
        states = (batch, count, hidden) if layout else (count, batch, hidden)
        names.append("")
        for _ in range(2):
            name = build.name("state")
            build.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, states))
            feed[name] = rng.normal(0, 0.8, states).astype(np.float32)
            names.append(name)
    outputs = [build.name("y") for _ in range(3)]
    build.nodes.append(helper.make_node("LSTM", names, outputs, name="lstm", hidden_size=hidden, direction=direction,
                                        layout=layout))  # fmt: skip
    states, build.inputs = build.inputs[1:], build.inputs[:1]
    feed |= build.feed()
    build.inputs += states
    return build.finish(*outputs), feed


def dynamic_model(seed, convolution):
    """A float input, quantised at run time, and a product of integers; and the input."""
    build = Builder(seed, opset=19)
    rng = build.rng
    shape = (2, 3, 6, 7) if convolution else (3, 4, 10)
    build.inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    build.nodes.append(helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"], name="quantise"))
    weights = rng.integers(-127, 128, (5, 3, 3, 3) if convolution else (10, 6))
    w, wz = build.constant(weights.astype(np.int8)), build.constant(np.int8(0))
    ws = build.constant(np.float32(0.01))
    op = "ConvInteger" if convolution else "MatMulInteger"
    how = {"pads": [1, 1, 1, 1]} if convolution else {}
    build.nodes += [
        helper.make_node(op, ["q", w, "zero", wz], ["sums"], name="product", **how),
        helper.make_node("Cast", ["sums"], ["real"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["scale", ws], ["unit"], name="unit"),
        helper.make_node("Mul", ["real", "unit"], ["y"], name="scaled"),
    ]
    return build.finish("sums", "y"), {"x": rng.normal(0.5, 2, shape).astype(np.float32)}
