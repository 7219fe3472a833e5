"""The loops for a GPU: their numbers in Triton's interpreter, on the CPU, and that they compile.

The interpreter has to be chosen before Triton is first imported, and then stays for the process.
What it runs, the functions `check_*`, is collected by a pytest in a process of its own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from making import rows
from test_kernels import BIASES, PRECISION, near, same, stacked
from torch import Tensor

from ensemble_sae.kernels import choice, plain, sparse
from ensemble_sae.kernels.choice import Kernels
from ensemble_sae.kernels.dense import DenseKernel
from ensemble_sae.kernels.forms import FORMS
from ensemble_sae.kernels.sparse import SparseKernel
from ensemble_sae.signatures import BUILTIN, Tensors

gpu: Any = pytest.importorskip("ensemble_sae.kernels.gpu", exc_type=ModuleNotFoundError)

B, K, N, D = 4, 2, 5, 3
CUDA = torch.device("cuda")
dtypes = pytest.mark.parametrize("dtype", PRECISION, ids=str)


def test_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        [*command, "-o", "python_functions=check_*"],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# --- each loop, against plain


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small arrays take several."""
    for name, size in {"BLOCK": 4, "PLACES": 2, "TILE": 8}.items():
        monkeypatch.setattr(gpu, name, size)


@pytest.fixture
def few_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of rows: each is a program, and the interpreter is slow."""
    monkeypatch.setitem(sparse.BLOCKS, "cpu", 2)


small, few = (pytest.mark.usefixtures(name) for name in ("small_blocks", "few_blocks"))


def draw(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return rows(shape[0], torch.Size(shape[1:]).numel(), seed, dtype=dtype).reshape(shape)


def empty(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, half of which are whole, and room for what `compact` finds."""
    scores = draw(B, K, N, dtype=dtype)
    scores[..., :3] = scores[..., :3].round()
    scores[1] = -1.0  # a row without any
    scores[2] = 1.0  # and one of them all
    return scores, torch.zeros(B, K, N, dtype=torch.int32), torch.zeros(B, K, dtype=torch.int64)


def affine(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Scale, bias, floor: whole numbers, so that equal scores stay equal."""
    scale, bias = torch.tensor([[1.0], [2.0]]).expand(K, N), torch.full((K, N), 1.0)
    return *(t.to(dtype).contiguous() for t in (scale, bias)), torch.full((K,), 0.1, dtype=dtype)


def active(dtype: torch.dtype) -> list[Tensor]:
    """Compact scores, columns and counts."""
    found = [t.clone() for t in empty(dtype)]
    plain.compact(*found, *affine(dtype))
    return found


def both(name: str, *given: Any) -> tuple[list[Any], list[Any]]:
    """The arguments after the loop here, and after plain's."""
    mine, known = ([t.clone() if isinstance(t, Tensor) else t for t in given] for _ in range(2))
    getattr(gpu, name)(*mine)
    getattr(plain, name)(*known)
    return mine, known


def agree(found: list[Any], expected: list[Any]) -> None:
    tensors = [[t for t in side if isinstance(t, Tensor)] for side in (found, expected)]
    tolerance = PRECISION[tensors[0][0].dtype]
    torch.testing.assert_close(*tensors, rtol=tolerance, atol=tolerance, equal_nan=True)


def fronts(given: list[Any]) -> list[Tensor]:
    """Of scores, columns and counts what means anything."""
    there = torch.arange(N) < given[2][..., None]
    return [given[0][there], given[1][there], given[2]]


@dtypes
@small
def check_compact(dtype: torch.dtype) -> None:
    given = empty(dtype)
    given[0][3, 0, 4] = torch.nan
    mine, known = both("compact", *given, *affine(dtype))
    agree(fronts(mine), fronts(known))
    assert mine[2][1:3].tolist() == [[0, 0], [N, N]]
    assert mine[0][3, 0, : mine[2][3, 0]].isnan().sum() == 1


@dtypes
def check_compact_largest(dtype: torch.dtype) -> None:
    given = *empty(dtype), *affine(dtype)
    bits = torch.zeros((), dtype=torch.int32 if dtype == torch.float32 else torch.int64)
    mine, known = both("compact_largest", *given, torch.tensor([1, 3]), bits)
    agree(fronts(mine), fronts(known))
    assert mine[2][1:3].tolist() == [[0, 0], [N, N]]  # equals all stay


def check_nan_is_among_the_largest() -> None:
    z, c, counts = (t[3:] for t in empty(torch.float32))
    z[..., 4] = torch.nan
    given = z, c, counts, *affine(torch.float32)
    gpu.compact_largest(*given, torch.tensor([1, 2]), torch.zeros((), dtype=torch.int32))
    assert counts[0, 0] == 1
    assert counts[0, 1] >= 2
    assert all(z[0, k, : counts[0, k]].isnan().sum() == 1 for k in range(K))


@dtypes
@small
def check_what_is_compact_already(dtype: torch.dtype) -> None:
    floor = torch.tensor([1.3, torch.inf], dtype=dtype)
    mine, known = both("keep_at_least", *active(dtype), floor)
    agree(fronts(mine), fronts(known))
    scores, _, counts = active(dtype)
    own = torch.cat([row[:count] for row, count in zip(scores[:, 1], counts[:, 1], strict=True)])
    for place in (0, len(own) // 2, len(own) - 1):
        found = gpu.nth_smallest(scores, counts, 1, place, torch.empty_like(own))
        assert found == own.sort().values[place]


def entries(dtype: torch.dtype) -> list[Tensor]:
    """What `decode` reads and writes, in the order of its arguments."""
    weights = draw(K, D, dtype=dtype), draw(K, N, D, dtype=dtype), draw(K, N, dtype=dtype).exp()
    l1 = draw(K, 1, dtype=dtype)[:, 0]
    shapes = (K, B, D), (B, K, N), (K, B), (K, B)
    outs = [torch.zeros(shape, dtype=dtype) for shape in shapes]
    return [draw(B, D, dtype=dtype, seed=1), *weights, l1, *active(dtype), *outs]


@dtypes
@small
def check_decode(dtype: torch.dtype) -> None:
    agree(*both("decode", *entries(dtype)))


def sorting(dtype: torch.dtype, decoded: list[Tensor]) -> list[Tensor]:
    """What `by_feature` reads and writes; the entries begin later than at 0."""
    scores, columns, counts, _, slopes = decoded[5:10]
    ends = counts.sum(0).cumsum(0)
    first = 2 + ends - counts.sum(0)
    places = torch.zeros(2 + int(ends[-1]), dtype=dtype)
    sizes = torch.zeros(K, 3, N, dtype=torch.int64)
    starts, at = torch.zeros(K, N + 1, dtype=torch.int64), places.to(torch.int32)
    outs = sizes, starts, at, places, places, torch.zeros(K, N, dtype=dtype)
    return [scores, columns, counts, slopes, first, *outs]


@dtypes
@small
def check_by_feature(dtype: torch.dtype) -> None:
    decoded = entries(dtype)
    plain.decode(*decoded)
    mine, known = both("by_feature", *sorting(dtype, decoded))
    agree(mine[:5] + mine[6:], known[:5] + known[6:])  # all but the sizes, which are room


def reading(dtype: torch.dtype) -> list[Tensor]:
    """What `gradients` and `descend` read, of which feature 4 of member 1 has no entries."""
    decoded = entries(dtype)
    decoded[7][:, 1] = decoded[7][:, 1].clamp(max=2)
    plain.decode(*decoded)
    sorted_ = sorting(dtype, decoded)
    plain.by_feature(*sorted_)
    batch, centre, decoder, shrink = decoded[:4]
    return [batch, decoded[8], centre, *sorted_[6:], decoder, shrink]


@pytest.mark.parametrize(("dtype", "tied"), [(torch.float32, False), (torch.float64, True)])
@small
def check_both_ways_to_move_the_weights(dtype: torch.dtype, tied: bool) -> None:
    read, room = reading(dtype), [torch.zeros(K, N, D, dtype=dtype)] * 2
    assert int(read[3][1].diff().min()) == 0
    agree(*both("gradients", tied, *read, *room))
    scalars = draw(K, 8, dtype=dtype).abs()
    moved = [draw(K, N, D, dtype=dtype, seed=seed).abs() for seed in range(5)]
    mine, known = both("descend", tied, *read, scalars, *moved)
    agree(mine, known)
    assert torch.equal(mine[12], moved[0]) == tied  # the encoder, which a tied member has not


# --- the kernel


def at_every_density(signature: type, dtype: torch.dtype) -> tuple[Tensors, Tensors]:
    """Three members: nothing, a few features, all features are active in a row."""
    options = {"centring": "learned"} if FORMS[signature].centred else {}
    params, buffers = stacked(signature, 3, D, 3, dtype=dtype, **options)
    for k, name in enumerate(("none active", "few", "all")):
        params["encoder_bias"][k] = BIASES[name] + params["encoder_bias"][k].sign()
    if "threshold" in buffers:
        buffers["threshold"][1] = 1e3  # a guess that is too high
    return params, buffers


def moments(params: Tensors) -> tuple[Tensors, Tensors]:
    """Random ones of the weights."""
    names = params.keys() & {"encoder", "decoder"}
    size = {name: params[name].shape for name in names}
    return tuple(
        {name: draw(*size[name], dtype=params[name].dtype, seed=seed).abs() for name in names}
        for seed in range(2)
    )


@pytest.mark.parametrize("signature", FORMS)
@few
def check_the_numbers_are_those_of_the_mapped_gradient(signature: type) -> None:
    halving = FORMS[signature].selection == "row"  # takes 32 steps less
    dtype = torch.float32 if halving else torch.float64
    given = *at_every_density(signature, dtype), rows(2, D, dtype=dtype)
    same(partial(SparseKernel, load=lambda: gpu), signature, *given)


@pytest.mark.parametrize("name", ["tied", "untied"])
@few
def check_a_step_is_that_of_plain(name: str) -> None:
    params, buffers = at_every_density(BUILTIN[name], torch.float64)
    states = []
    for loops in (gpu, plain):
        own, (first, second) = {k: t.clone() for k, t in params.items()}, moments(params)
        found = SparseKernel(FORMS[BUILTIN[name]], lambda loops=loops: loops)(
            own, buffers, rows(2, D)
        )
        found.descend(rows(3, 8).abs(), first, second)
        groups = {"params": own, "first": first, "second": second}
        states.append({f"{g} {k}": t for g, part in groups.items() for k, t in part.items()})
    near(*states, PRECISION[torch.float64])
    assert not torch.equal(states[0]["params decoder"], params["decoder"])


@pytest.mark.parametrize("name", ["tied", "batchtopk"])
def check_one_of_everything(name: str) -> None:
    options = {"centring": "learned"} if FORMS[BUILTIN[name]].centred else {}
    given = stacked(BUILTIN[name], 1, 2, 1, dtype=torch.float32, **options)
    given[0]["encoder_bias"].fill_(5.0)
    same(
        partial(SparseKernel, load=lambda: gpu),
        BUILTIN[name],
        *given,
        rows(1, 2, dtype=torch.float32),
    )


# --- for a GPU that is not there


POINTERS = {"counts": "i64", "ks": "i64", "starts": "i64", "sizes": "i64", "columns": "i32"}
NUMBERS = {"members", "n", "batch", "d", "blocks", "per_block", "width"}
SIZES = {"SIZE": 64, "BLOCK": 32, "D": 32, "ENTRIES": 4, "TIED": False, "SIGN": 2**31 - 1}
PROGRAMS = [
    "compact",
    "compact_largest",
    "keep_at_least",
    "decode",
    "count_columns",
    "place_entries",
    "sum_features",
    "gradients",
    "descend",
]


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_compile(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the interpreter takes the compiler may refuse; it needs no GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    program = getattr(gpu.gpu_loops, name)
    known = SIZES | {"BITS": gpu.gpu_loops.INTEGERS[torch.int32]}
    constants = {key: known[key] for key in program.arg_names if key in known}
    types = dict.fromkeys(constants, "constexpr")
    pointers = {key: f"*{POINTERS.get(key, 'fp32')}" for key in program.arg_names}
    pointers |= {"at": "*i32"} | dict.fromkeys(NUMBERS, "i32") | types
    signature = {key: pointers[key] for key in program.arg_names}
    source = ASTSource(program, signature, constants)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    assert "cubin" in made.asm


# --- who takes it


def chosen(kernel: Any, device: torch.device = CUDA) -> Kernels:
    return Kernels(BUILTIN["tied"], kernel, *stacked(BUILTIN["tied"], 2, 5, 70), device)


def test_on_a_gpu_who_asks_for_it_gets_it() -> None:
    found = chosen("sparse")
    assert found.sparse is not None
    assert found.sparse.loops is gpu
    assert found.is_sparse.all()
    assert chosen("auto").sparse is chosen("dense").sparse is None
    assert isinstance(chosen("auto").dense, DenseKernel)
    assert not chosen("auto").is_sparse.any()
    assert chosen("sparse", torch.device("mps")).sparse is None


def test_without_triton_a_gpu_is_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice.importlib.util, "find_spec", lambda name: None)
    found = chosen("sparse")
    assert found.sparse is None
    assert not found.is_sparse.any()


def test_triton_is_imported_in_one_place() -> None:
    folder = Path(choice.__file__).parents[1]
    found = [
        path.name
        for path in folder.rglob("*.py")
        if re.search(r"^\s*(import|from) triton", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert found == ["gpu_loops.py"]
