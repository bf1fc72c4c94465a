# SPDX-License-Identifier: Apache-2.0
"""Which runtime and precision computes an MLP of SAM3's image encoder fastest on this processor, and how exactly.

Half the tokens of a picture through 1024 -> 4736 -> 1024, on one core; the error is relative to PyTorch in float32.
It decides what `--fast` is: the image encoder is mostly this.
Run: `OMP_NUM_THREADS=1 python benchmarks/cpu_products.py [--rounds 2]`; needs the extra `export`.
"""

import argparse
import logging
import tempfile
import warnings
from pathlib import Path

import nncf
import numpy as np
import onnxruntime
import openvino
import torch
from kept import add_options, finish, ratios
from onnxruntime.quantization import QuantType, quantize_dynamic
from timing import alternate, ratio, table
from torch import nn

from sam3i.modeling_sam3i.int8_vision import Int8Linear

TOKENS, WIDTH, INNER = 2592, 1024, 4736


def open_onnx(path: Path):
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda tokens: session.run(None, {name: tokens})[0]


def open_openvino(graph):
    request = openvino.compile_model(graph, "CPU", {"INFERENCE_NUM_THREADS": 1}).create_infer_request()
    return lambda tokens: next(iter(request.infer([tokens]).values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--bf16", action="store_true", help="bf16 as well: many times slower without AVX-512")
    add_options(parser)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(WIDTH, INNER), nn.GELU(), nn.Linear(INNER, WIDTH)).eval().requires_grad_(False)
    tokens = torch.randn(TOKENS, WIDTH)
    array = tokens.numpy()
    torch.backends.quantized.engine = "onednn"
    small = nn.Sequential(Int8Linear(mlp[0]), nn.GELU(), Int8Linear(mlp[2]))
    ways = {"torch fp32": lambda: mlp(tokens), "torch int8": lambda: small(tokens)}
    if options.bf16:
        half = nn.Sequential(nn.Linear(WIDTH, INNER), nn.GELU(), nn.Linear(INNER, WIDTH)).bfloat16()
        half.load_state_dict(mlp.state_dict())
        ways["torch bf16"] = lambda: half(tokens.bfloat16()).float()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "mlp.onnx"
        torch.onnx.export(mlp, (tokens,), source, dynamo=False)
        sessions = {"onnx fp32": source}
        for name, seven_bits in (("onnx int8", False), ("onnx int8, 7 bits", True)):
            sessions[name] = Path(folder) / f"{name}.onnx"
            kind = {"weight_type": QuantType.QInt8, "per_channel": True, "reduce_range": seven_bits}
            quantize_dynamic(source, sessions[name], **kind)
        opened = {name: open_onnx(path) for name, path in sessions.items()}
        core = openvino.Core()
        graphs = [core.read_model(source) for _ in range(3)]
        opened["openvino fp32"] = open_openvino(graphs[0])
        weights = nncf.compress_weights(graphs[1], mode=nncf.CompressWeightsMode.INT8_ASYM)
        opened["openvino int8 weights"] = open_openvino(weights)
        calibrated = nncf.quantize(graphs[2], nncf.Dataset([array]), model_type=nncf.ModelType.TRANSFORMER)
        opened["openvino int8"] = open_openvino(calibrated)
        ways |= {name: lambda run=run: torch.from_numpy(np.array(run(array))) for name, run in opened.items()}
        timings = alternate(ways, options.rounds)
        exact = mlp(tokens)
        errors = {name: float((run() - exact).norm() / exact.norm()) for name, run in ways.items()}
    base = timings["torch fp32"]
    rows = [[name, time.cpu_s, 1 / ratio(time, base), f"{errors[name]:.1e}"] for name, time in timings.items()]
    capability = torch.backends.cpu.get_cpu_capability()
    table(f"an MLP of the image encoder, {capability}", ["", "cpu s", "times faster", "error"], rows)
    finish("cpu_products", "mlp", ratios(timings, "torch fp32"), options, errors=errors)


if __name__ == "__main__":
    main()
