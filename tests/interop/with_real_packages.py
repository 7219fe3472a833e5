"""Exports loaded by the real packages, each in an environment of its own: `make test-interop`.

Members of every kind are exported, then `--package NAME FOLDER` runs in that package's environment:
it loads them as its users do, encodes and decodes the same rows, and the largest difference to
what our own code gives is compared with 1e-5 of the largest value.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 1e-5
PACKAGES = ("saelens", "dictionary_learning", "sparsify")


def export_all(folder: Path, package: str) -> int:
    """Write every member that the format can express, with rows and what they become."""
    from interop.members import CASES, member, rows

    from ensemble_sae.errors import UserError
    from ensemble_sae.files import write_tensors
    from ensemble_sae.interop import FORMATS
    from ensemble_sae.interop.about import About
    from ensemble_sae.interop.folding import fold

    form: Any = FORMATS[package]
    count = 0
    for name, (signature, options) in CASES.items():
        own = folder / f"{count:02d}"
        own.mkdir()
        folded, x = fold(member(signature, options)), rows()
        try:
            form.write(folded, own, About(hook="blocks.0.hook_resid_pre", text=name))
        except UserError:
            own.rmdir()
            continue
        known = {"x": x, "code": folded.encode(x), "again": folded(x)}
        write_tensors(own / "known.safetensors", known)
        (own / "case.json").write_text(json.dumps(name))
        count += 1
    return count


def load(package: str, folder: str) -> tuple[Any, Any]:
    """Encode and decode of the package's own object."""
    if package == "saelens":
        from sae_lens import SAE

        sae = SAE.load_from_disk(folder, device="cpu")
        return sae.encode, sae.decode
    if package == "dictionary_learning":
        from dictionary_learning.utils import load_dictionary

        ae, _ = load_dictionary(folder, "cpu")
        return ae.encode, ae.decode
    from sparsify import SparseCoder

    coder = SparseCoder.load_from_disk(folder, device="cpu")
    return dense(coder), lambda code: code @ coder.W_dec + coder.b_dec


def dense(coder: Any) -> Any:
    """sparsify's codes are the k largest and where they are."""

    def encode(x: Any) -> Any:
        found = coder.encode(x)
        return x.new_zeros(len(x), coder.num_latents).scatter(1, found.top_indices, found.top_acts)

    return encode


def compare(package: str, folder: Path) -> int:
    """In the package's environment: load, encode, decode; 1 if anything differs."""
    import torch
    from safetensors.torch import load_file

    failed = 0
    for own in sorted(path for path in folder.iterdir() if path.is_dir()):
        known = load_file(own / "known.safetensors")
        encode, decode = load(package, str(own))
        with torch.no_grad():
            code = encode(known["x"])
            again = decode(code)
        worst = max(
            float((found - known[name]).abs().max() / known[name].abs().max())
            for name, found in (("code", code), ("again", again))
        )
        failed |= worst > LIMIT
        print(f"{package:<20} {json.loads((own / 'case.json').read_text()):<22} {worst:.1e}")
    return failed


def main() -> None:
    """Export, then compare in every package's environment."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--package", choices=PACKAGES)
    parser.add_argument("folder", nargs="?", type=Path)
    options = parser.parse_args()
    if options.package:
        sys.exit(compare(options.package, options.folder))
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks" / "peers")]
    from environments import ENVIRONMENTS, python_of

    failed = 0
    for package in PACKAGES:
        with tempfile.TemporaryDirectory() as folder:
            export_all(Path(folder), package)
            python = python_of(ENVIRONMENTS[package], print)
            command = [python, __file__, "--package", package, folder]
            failed |= subprocess.run(command, check=False).returncode
    sys.exit(failed)


if __name__ == "__main__":
    main()
