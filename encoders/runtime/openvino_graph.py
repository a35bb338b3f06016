"""A tower's forward pass as an OpenVINO graph, made from the torch model in memory: no file, no second set of weights.

The model is traced and handed to OpenVINO's PyTorch frontend as it is. `openvino.convert_model` would do the same, but
reports each call to its makers over the network.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

Tensors = dict[str, torch.Tensor]
# Weights and activations are rounded in groups of this many: one scale for a whole row of activations cost MiniLM a
# cosine of .93, groups of 32 are slower and change the third digit behind the 9s.
_GROUP = 128
_INT8_MOST = 127
_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


class OpenVinoGraph:
    """A compiled forward pass. It takes any batch size and any number of tokens, but only one size of pictures.

    Calls from several threads wait for each other.
    """

    def __init__(self, model: Any, *, precision: str, threads: int) -> None:
        """Compile.

        Args:
            model: what `converted` gave.
            precision: with which it was converted.
            threads: of the CPU.
        """
        import openvino

        self._lock = threading.Lock()
        self._compiled = openvino.Core().compile_model(
            model,
            "CPU",
            {
                # Left to itself OpenVINO computes in bf16 where the processor has it.
                "INFERENCE_PRECISION_HINT": _HINTS[precision],
                "INFERENCE_NUM_THREADS": threads,
                "NUM_STREAMS": 1,
                # Actors know nothing of each other, and would all pin their threads to the first cores.
                "ENABLE_CPU_PINNING": False,
                "DYNAMIC_QUANTIZATION_GROUP_SIZE": _GROUP if precision == "int8" else 0,
            },
        )
        self._request = self._compiled.create_infer_request()
        self._names = [port.get_any_name() for port in self._compiled.inputs]

    def __call__(self, inputs: Tensors) -> torch.Tensor:
        """Features (n, dim) of named tensors (n, …) like those of the example."""
        arrays = {name: np.ascontiguousarray(inputs[name].numpy()) for name in self._names}
        with self._lock:
            found = self._request.infer(arrays, share_inputs=True, share_outputs=True)[0]
            return torch.from_numpy(found.copy())


def converted(forward: Callable[[Tensors], torch.Tensor], example: Tensors, precision: str) -> Any:
    """The OpenVINO model, with free batch size and token count. Its constants are the torch model's own memory.

    Args:
        forward: named tensors (n, …) → features (n, dim).
        example: its input; pictures must have their final size.
        precision: `fp32`, `bf16`, or `int8`, which keeps the weights of linear layers in int8 and rounds what they
            multiply; everything else is then fp32.

    Raises:
        ModuleNotFoundError: openvino is not installed.
        ValueError: `int8`, and the model has no linear layer.
        RuntimeError: the model cannot be traced, or OpenVINO does not know one of its operations.
    """
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False), warnings.catch_warnings():
        # The tracer warns of every size that it takes for a constant. What comes of it is checked by its numbers.
        warnings.simplefilter("ignore")
        tensors = tuple(tensor.clone() for tensor in example.values())
        traced = torch.jit.trace(_Positional(forward, tuple(example)), tensors, strict=False, check_trace=False)
        decoder = TorchScriptPythonDecoder(traced)  # the frontend holds no reference to it
        frontend = FrontEndManager().load_by_framework("pytorch")
        model = frontend.convert(frontend.load(decoder))
    shapes = {}
    for port, (name, tensor) in zip(model.inputs, example.items(), strict=True):
        port.set_names({name})
        shapes[name] = [-1, *tensor.shape[1:]] if tensor.dim() == 4 else [-1, -1]
    model.reshape(shapes)
    model.validate_nodes_and_infer_types()
    if precision == "int8" and not _compress_linear_layers(model):
        raise ValueError("it has no linear layers, which alone are quantised")
    return model


class _Positional(torch.nn.Module):
    """A function of named tensors as the module of unnamed ones that the tracer wants."""

    def __init__(self, forward: Callable[[Tensors], torch.Tensor], names: tuple[str, ...]) -> None:
        super().__init__()
        self._forward = forward
        self._names = names

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        """Features (n, dim)."""
        return self._forward(dict(zip(self._names, tensors, strict=True)))


def _compress_linear_layers(model: Any) -> int:
    """Replace the weights of linear layers by int8 and a scale a row; OpenVINO then also rounds what they multiply.

    Returns:
        How many were replaced.
    """
    return sum(_compress(node) for node in model.get_ordered_ops() if node.get_type_name() == "MatMul")


def _compress(matmul: Any) -> bool:
    from openvino import opset13 as ops

    source = matmul.input_value(1).get_node()
    if source.get_type_name() != "Constant" or len(source.shape) != 2 or source.data.dtype != np.float32:
        return False
    per_output = 1 if matmul.get_attributes()["transpose_b"] else 0
    weights = source.data
    scales = np.maximum(np.abs(weights).max(axis=per_output, keepdims=True), 1e-12) / _INT8_MOST
    rounded = np.clip(np.rint(weights / scales), -_INT8_MOST, _INT8_MOST).astype(np.int8)
    restored = ops.multiply(ops.convert(ops.constant(rounded), np.float32), ops.constant(scales.astype(np.float32)))
    matmul.input(1).replace_source_output(restored.output(0))
    return True
