"""Random float ONNX models, to be quantised."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper


class Floats:
    """A float graph that grows at its end."""

    def __init__(self, seed, shape):
        self.rng = np.random.default_rng(seed)
        self.nodes, self.constants, self.last, self.shape = [], [], "x", shape

    def constant(self, *shape, about=0.0, spread=0.4):
        value = (about + self.rng.normal(0, spread, shape)).astype(np.float32)
        self.constants.append(numpy_helper.from_array(value, f"k{len(self.constants)}"))
        return self.constants[-1].name

    def add(self, op, *inputs, name=None, **attributes):
        """A node behind the last one."""
        output = f"t{len(self.nodes)}"
        name = name if name is not None else f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, [self.last, *inputs], [output], name=name, **attributes))
        self.last = output
        return output

    def fixed(self, value):
        self.constants.append(numpy_helper.from_array(np.asarray(value), f"k{len(self.constants)}"))
        return self.constants[-1].name

    def norm(self, channels):
        scale, offset, mean = self.constant(channels, about=1.0), self.constant(channels), self.constant(channels)
        variance = self.constant(channels)
        value = np.abs(numpy_helper.to_array(self.constants[-1])) + 0.5
        self.constants[-1].CopyFrom(numpy_helper.from_array(value, variance))
        return self.add("BatchNormalization", scale, offset, mean, variance)

    def model(self, opset=17, ir_version=8):
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)]
        if ir_version < 4:
            inputs += [helper.make_tensor_value_info(k.name, k.data_type, k.dims) for k in self.constants]
        outputs = [helper.make_tensor_value_info(self.last, TensorProto.FLOAT, None)]
        graph = helper.make_graph(self.nodes, "net", inputs, outputs, self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def cnn(seed, batch="N", **kwargs):
    """Conv, BatchNormalization, Relu, Conv, Add, Relu, MaxPool, Flatten, Gemm, Relu, MatMul, Add."""
    net = Floats(seed, [batch, 3, 8, 8])
    channels = int(net.rng.integers(4, 12))
    net.add("Conv", net.constant(channels, 3, 3, 3), net.constant(channels), name="first", pads=[1] * 4)
    net.norm(channels)
    short = net.add("Relu")
    net.add("Conv", net.constant(channels, channels, 3, 3, spread=0.2), name="second", pads=[1] * 4)
    net.add("Add", short)
    net.add("Relu")
    net.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    net.add("Flatten")
    net.add("Gemm", net.constant(21, 16 * channels, spread=0.1), net.constant(21), name="third", transB=1)
    net.add("Relu")
    net.add("MatMul", net.constant(21, 10), name="fourth")
    net.add("Add", net.constant(10))
    return net.model(**kwargs)


def mlp(seed, **kwargs):
    """Gemm, BatchNormalization, Relu, MatMul, BatchNormalization, Relu, Gemm, Softmax."""
    net = Floats(seed, ["N", 30])
    net.add("Gemm", net.constant(30, 41), net.constant(1, 41), name="first", beta=0.5)
    net.norm(41)
    net.add("Relu")
    net.add("MatMul", net.constant(41, 26), name="second")
    net.norm(26)
    net.add("Relu")
    net.add("Gemm", net.constant(9, 26), name="third", transB=1, alpha=0.25)
    net.add("Softmax", axis=1)
    return net.model(**kwargs)


def mixture(seed):
    """Depthwise convolutions, Clip, branches, a gate, attention, LayerNormalization; 13 products, 11 of constants."""
    net = Floats(seed, [1, 3, 12, 12])

    def conv(cout, cin, kernel=1, **attributes):
        weights = net.constant(cout, cin, kernel, kernel, spread=0.9 / (cin * kernel * kernel) ** 0.5)
        return net.add("Conv", weights, net.constant(cout, spread=0.2), **attributes)

    def linear():
        net.add("MatMul", net.constant(12, 12, spread=0.3))
        return net.add("Add", net.constant(12))

    def from_here(make, start):
        net.last = start
        return make()

    conv(8, 3, 3, strides=[2, 2], pads=[1] * 4)
    net.norm(8)
    short = net.add("Clip", net.fixed(np.float32(0)), net.fixed(np.float32(6)))
    conv(16, 8)
    net.add("Relu")
    conv(16, 1, 3, pads=[1] * 4, group=16)
    net.norm(16)
    net.add("Relu")
    conv(8, 16)
    start = net.add("Add", short)
    branch = from_here(lambda: net.add("AveragePool", kernel_shape=[3, 3], pads=[1] * 4), start)
    from_here(lambda: conv(4, 8), start)
    start = net.add("Concat", branch, axis=1)
    net.add("GlobalAveragePool")
    conv(12, 12)
    net.add("Sigmoid")
    net.add("Mul", start)
    conv(12, 12, 3)
    net.add("HardSwish")
    net.add("Reshape", net.fixed(np.array([1, 12, -1])))
    start = net.add("Transpose", perm=[0, 2, 1])
    query, value = from_here(linear, start), from_here(linear, start)
    key = from_here(linear, start)
    swapped = net.add("Transpose", perm=[0, 2, 1])
    net.last = query
    net.add("MatMul", swapped)
    net.add("Softmax", axis=-1)
    net.add("MatMul", value)
    net.add("Add", key)
    net.add("LayerNormalization", net.constant(12, about=1.0), net.constant(12))
    net.add("ReduceMean", axes=[1], keepdims=0)
    net.add("Gemm", net.constant(5, 12), net.constant(5), transB=1)
    return net.model()
