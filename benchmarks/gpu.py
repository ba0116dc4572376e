"""Run the three commands of `benchmarks/gpu` one after another: check, curve, product.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --dry-run

benchmarks/gpu/README.md says what each does and writes. Each runs in its own process, so that the others run even if
one loses its GPU.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

COMMANDS = ("check", "curve", "product")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="the smallest sizes; no figure means anything")
    options = parser.parse_args()
    dry = ["--dry-run"] if options.dry_run else []
    root = Path(__file__).resolve().parents[1]
    codes = [
        subprocess.run([sys.executable, "-m", f"benchmarks.gpu.{name}", *dry], cwd=root, check=False).returncode
        for name in COMMANDS
    ]
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
