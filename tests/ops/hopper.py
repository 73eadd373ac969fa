"""Compile the kernels for an H100 or H200 without having one, and say what each configuration needs.

``python tests/ops/hopper.py KERNEL DTYPE FILTERS HxW ...`` prints one JSON line a configuration. It must run in a
process of its own, outside Triton's interpreter.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from freqformer.ops import triton as kernels

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
POINTERS_TO_INPUTS = ("x", "dy", "y", "forward", "both", "back")
NUMBERS = {"batch": "i32", "channels": "i32", "scale": "fp32"}


def needs(kernel, dtype, filters, height, width, config):
    """Bytes of shared memory, registers and bytes spilled by a thread, and whether wgmma is used."""
    function = {"filter": kernels._filter, "gradient": kernels._gradient}[kernel]
    constants = kernels._sizes(height, width, DTYPES[dtype])
    constants |= {"PARTS": 2, "FILTERS": filters, "PER_SAMPLE": 0, "CONJUGATE": 1}
    constants |= {"KP": triton.next_power_of_2(max(filters, 1)), **config.kwargs}
    constants = {name: value for name, value in constants.items() if name in function.arg_names}
    signature = {
        name: "constexpr"
        if name in constants
        else NUMBERS.get(name, f"*{dtype if name in POINTERS_TO_INPUTS else 'fp32'}")
        for name in function.arg_names
    }
    aligned = {
        (position,): [["tt.divisibility", 16]]
        for position, name in enumerate(function.arg_names)
        if signature[name].startswith("*") or name == "channels"
    }
    source = ASTSource(function, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages, "maxnreg": config.maxnreg}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    row = {"shared": compiled.metadata.shared, "wgmma": "wgmma" in compiled.asm["ptx"]}
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if tool.exists():
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            command = [str(tool), "--dump-resource-usage", file.name]
            usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        row["registers"], row["spilled"] = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
    return row


if __name__ == "__main__":
    kernel, dtype, filters, *grids = sys.argv[1:]
    for grid in grids:
        height, width = map(int, grid.split("x"))
        for config in kernels._suitable(kernel, height, width, DTYPES[dtype].itemsize):
            row = needs(kernel, dtype, int(filters), height, width, config)
            print(json.dumps({"grid": grid, **config.kwargs, "warps": config.num_warps, **row}), flush=True)
