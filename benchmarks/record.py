"""Keep what a benchmark measured, with the command, commit and machine beside it."""

import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def record(name: str, result: Any) -> Path:
    """Write ``results/NAME.json``; returns its path. Folders outside the repository are left out of the command."""
    arguments = [f"{Path(a).name}/" if Path(a).is_absolute() else a for a in sys.argv[1:]]
    facts = {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *arguments]),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+changes" if _git("status", "--porcelain", "src") else ""),
        "date": date.today().isoformat(),
        "machine": f"{_processor()}, {len(os.sched_getaffinity(0))} cores, torch {torch.__version__}",
        "result": result,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(facts, indent=1) + "\n")
    return path


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=RESULTS.parent, capture_output=True, text=True, check=True
    ).stdout.strip()


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    extras = [name for name in ("amx_bf16", "avx512_bf16") if capabilities.get(name)]
    return " ".join([names[0] if names else platform.processor(), *extras])
