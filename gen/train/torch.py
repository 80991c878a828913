"""PyTorch layers whose products run on the accelerator, forward and backward (docs/torch.md).

Needs torch: pip install 'maskwork[torch]'.

Tensors are rounded to integers with a power of two as their scale, one scale each; products of the integers are
exact (:mod:`maskwork.gen.train.products`); bias, other layers, loss and optimiser are torch's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from importlib import import_module
from typing import Any

import numpy as np
from maskwork.gen.errors import MaskworkError, MaskworkTypeError, MaskworkValueError
from maskwork.gen.train.accelerator import Accelerator, Step
from maskwork.gen.train.products import conv_layer
from numpy.typing import NDArray

try:
    torch: Any = import_module("torch")
except ImportError:
    torch = None

__all__ = ["Accelerator", "Conv2d", "Linear", "convert"]

_Function: Any = torch.autograd.Function if torch else object
_Conv2d: Any = torch.nn.Conv2d if torch else object
_Linear: Any = torch.nn.Linear if torch else object


def _array(tensor: Any, axes: tuple[int, ...]) -> NDArray[np.float64]:
    return np.ascontiguousarray(tensor.detach().double().cpu().numpy().transpose(axes))


def _tensor(values: NDArray[Any], axes: tuple[int, ...], like: Any) -> Any:
    return torch.from_numpy(np.ascontiguousarray(values.transpose(axes))).to(dtype=like.dtype, device=like.device)


_NHWC, _NCHW = (0, 2, 3, 1), (0, 3, 1, 2)
_HWIO, _OIHW = (2, 3, 1, 0), (3, 2, 0, 1)


class _Product(_Function):
    """y = conv2d(x, w) without bias: x (N, Cin, H, W), w (Cout, Cin / groups, kh, kw)."""

    @staticmethod
    def forward(ctx: Any, x: Any, w: Any, module: Any, geometry: tuple[int, int, int, int]) -> Any:
        accelerator, name = module.accelerator, module.label
        own_x, own_w = _array(x, _NHWC), _array(w, _HWIO)
        layer = conv_layer(name, own_x.shape, own_w.shape, *geometry)  # type: ignore[arg-type]
        tensors = {"input": accelerator.quantise(own_x, "input", name),
                   "weight": accelerator.quantise(own_w, "weight", name)}  # fmt: skip
        result = accelerator.run(layer, "forward", tensors, None)
        step = Step(layer, accelerator.record_masks)
        step.add("forward", **{key: value.values for key, value in tensors.items()})
        accelerator.latest(step)
        ctx.accelerator, ctx.layer, ctx.tensors, ctx.step = accelerator, layer, tensors, step
        # the zeros of what torch sees: a value that rounds to 0 has passed its ReLU
        ctx.x_mask = own_x != 0 if module.use_input_mask else None
        ctx.w_mask = own_w != 0 if module.use_weight_mask and not own_w.all() else None
        ctx.like = x.new_empty(0), w.new_empty(0)
        return _tensor(result, _NCHW, x)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        accelerator, layer, step = ctx.accelerator, ctx.layer, ctx.step
        if torch.is_grad_enabled():
            raise MaskworkError(f"{layer.layer}: has no second derivatives; create_graph=False is expected")
        g = accelerator.quantise(_array(gradient, _NHWC), "output_grad", layer.layer)
        dx = dw = None
        if ctx.needs_input_grad[0]:
            tensors = {"output_grad": g, "weight": ctx.tensors["weight"]}
            dx = _tensor(accelerator.run(layer, "input_grad", tensors, ctx.x_mask), _NCHW, ctx.like[0])
            step.add("input_grad", output_grad=g.values, input_mask=ctx.x_mask)
        if ctx.needs_input_grad[1]:
            tensors = {"input": ctx.tensors["input"], "output_grad": g}
            dw = _tensor(accelerator.run(layer, "weight_grad", tensors, ctx.w_mask), _OIHW, ctx.like[1])
            step.add("weight_grad", output_grad=g.values)
        accelerator.latest(step)
        return dx, dw, None, None


def _checked(name: str, x: Any, channels: int, axis: int, ranks: Collection[int], shape: str) -> None:
    if not isinstance(x, torch.Tensor) or not x.is_floating_point():
        raise MaskworkTypeError(f"{name}: input must be a tensor of floats, not {getattr(x, 'dtype', type(x))}")
    if (ranks and x.dim() not in ranks) or not x.dim() or x.shape[axis] != channels or not x.numel():
        raise MaskworkValueError(f"{name}: input must have shape {shape} of 1 or more, not {tuple(x.shape)}")


class _OnAccelerator:
    """What both layers have.

    Members:
        accelerator: where products run.
        label: the name in reports.
        use_input_mask: the input's gradient is wanted only where the input is not 0.
        use_weight_mask: the weights' gradient is wanted only where the weight is not 0.
    """

    def attach(self, accelerator: Accelerator, name: str, input_mask: bool, weight_mask: bool) -> None:
        """Set the members."""
        self.accelerator, self.label = accelerator, accelerator.claim(name)
        self.use_input_mask, self.use_weight_mask = bool(input_mask), bool(weight_mask)


def _name(accelerator: Any, name: str | None, kind: str) -> str:
    if not isinstance(accelerator, Accelerator):
        raise MaskworkTypeError(f"accelerator must be an Accelerator, not {type(accelerator).__name__}")
    return accelerator.free_name(kind) if name is None else name


class Conv2d(_OnAccelerator, _Conv2d):
    """torch.nn.Conv2d with its products on an accelerator.

    Takes the arguments of torch.nn.Conv2d, and:

    Args:
        accelerator: where products run.
        name: in reports and masks; by default conv1, conv2 ...
        input_mask: the input comes from a ReLU: where it is 0 its gradient is not computed.
        weight_mask: weights that are 0 are pruned: their gradient is not computed.

    Raises:
        MaskworkValueError: for what the array does not have: strides, paddings or dilations that differ between the
            axes, and padding_mode other than "zeros".
    """

    def __init__(
        self, *args: Any, accelerator: Accelerator, name: str | None = None, input_mask: bool = False,
        weight_mask: bool = False, **kwargs: Any,
    ) -> None:  # fmt: skip
        name = _name(accelerator, name, "conv")
        super().__init__(*args, **kwargs)
        _geometry(self, name)
        self.attach(accelerator, name, input_mask, weight_mask)

    def forward(self, input: Any) -> Any:
        """(N, Cin, H, W) or (Cin, H, W) to (N, Cout, OH, OW) or (Cout, OH, OW)."""
        _checked(self.label, input, self.in_channels, -3, (3, 4), f"(N, {self.in_channels}, H, W)")
        x = input if input.dim() == 4 else input[None]
        result = _Product.apply(x, self.weight, self, _geometry(self, self.label))
        if self.bias is not None:
            result = result + self.bias[:, None, None]
        return result if input.dim() == 4 else result[0]


def _geometry(conv: Any, name: str) -> tuple[int, int, int, int]:
    """Stride, padding, dilation and groups."""
    if conv.padding_mode != "zeros":
        raise MaskworkValueError(f"{name}: padding_mode must be 'zeros', not {conv.padding_mode!r}")
    reach = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    padding = {"valid": (0, 0), "same": (reach[0] / 2, reach[1] / 2)}.get(conv.padding, conv.padding)
    found = []
    for key, pair in (("stride", conv.stride), ("padding", padding), ("dilation", conv.dilation)):
        if len(set(pair)) != 1 or pair[0] != int(pair[0]):
            raise MaskworkValueError(f"{name}: {key} must be the same on all sides, not {getattr(conv, key)!r}")
        found.append(int(pair[0]))
    return found[0], found[1], found[2], conv.groups


class Linear(_OnAccelerator, _Linear):
    """torch.nn.Linear with its products on an accelerator.

    Takes the arguments of torch.nn.Linear, and those of :class:`Conv2d`; by default named linear1, linear2 ...
    """

    def __init__(
        self, *args: Any, accelerator: Accelerator, name: str | None = None, input_mask: bool = False,
        weight_mask: bool = False, **kwargs: Any,
    ) -> None:  # fmt: skip
        name = _name(accelerator, name, "linear")
        super().__init__(*args, **kwargs)
        self.attach(accelerator, name, input_mask, weight_mask)

    def forward(self, input: Any) -> Any:
        """(..., in_features) to (..., out_features)."""
        _checked(self.label, input, self.in_features, -1, (), f"(..., {self.in_features})")
        x = input.reshape(-1, self.in_features, 1, 1)
        result = _Product.apply(x, self.weight[:, :, None, None], self, (1, 0, 1, 1))
        result = result.reshape(*input.shape[:-1], self.out_features)
        return result if self.bias is None else result + self.bias


def convert(module: Any, accelerator: Accelerator, *, skip: Collection[str] = (), prefix: str = "") -> Any:
    """Put a model's layers on an accelerator, in place: parameters, hooks and optimisers stay.

    Every torch.nn.Conv2d and torch.nn.Linear (no subclasses) becomes :class:`Conv2d` or :class:`Linear`, named by its
    place in the model. ``use_input_mask`` is set where a torch.nn.Sequential shows that the input is a ReLU's,
    ``use_weight_mask`` where torch.nn.utils.prune has pruned the weights; set others yourself.

    Args:
        module: the model, or one layer.
        accelerator: where products run.
        skip: names of layers to leave alone.
        prefix: of the layers' names in reports.

    Returns:
        The same model.

    Raises:
        MaskworkTypeError, MaskworkValueError: if there is nothing to convert, or for a layer that the array does not
            have; then nothing is changed.
    """
    if not isinstance(module, torch.nn.Module) or not isinstance(accelerator, Accelerator):
        raise MaskworkTypeError(f"a torch module and an Accelerator are expected, not {type(module).__name__} and "
                                f"{type(accelerator).__name__}")  # fmt: skip
    kinds = {torch.nn.Conv2d: Conv2d, torch.nn.Linear: Linear}
    everything = dict(module.named_modules())
    if isinstance(skip, str) or not set(skip) <= set(everything):
        raise MaskworkValueError(f"skip must hold names of the model's modules, not {skip!r}")
    found = {prefix + (name or type(layer).__name__.lower()): layer for name, layer in everything.items()
             if type(layer) in kinds and name not in skip}  # fmt: skip
    if not found:
        raise MaskworkValueError("the model has no torch.nn.Conv2d or torch.nn.Linear to convert")
    for name, layer in found.items():
        if isinstance(layer, torch.nn.Conv2d):
            _geometry(layer, name)
        accelerator.check_name(name)
    # a layer in two places may have another input in the other
    places = Counter(id(child) for owner in everything.values() for child in owner._modules.values())
    behind = {id(layer) for owner in everything.values() for layer in _behind_relu(owner) if places[id(layer)] == 1}
    for name, layer in found.items():
        layer.__class__ = kinds[type(layer)]
        layer.attach(accelerator, name, id(layer) in behind, "weight_mask" in layer._buffers)
    return module


def _behind_relu(owner: Any) -> list[Any]:
    """Modules of a Sequential whose input is 0 where a ReLU, and what passes no gradient to it, made it so."""
    nn = torch.nn
    through = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Flatten, nn.Dropout,
               nn.Dropout2d, nn.Identity)  # fmt: skip
    if not isinstance(owner, nn.Sequential) or type(owner).forward is not nn.Sequential.forward:
        return []
    found, positive = [], False
    for layer in owner:
        if positive:
            found.append(layer)
        positive = isinstance(layer, (nn.ReLU, nn.ReLU6)) or (positive and isinstance(layer, through))
    return found


if torch is None:
    # the bare module imports, so that tools can list it; nothing in it does
    for _public in __all__:
        del globals()[_public]

    def __getattr__(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise MaskworkError("PyTorch is missing: pip install 'maskwork[torch]' brings it")
