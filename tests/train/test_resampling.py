"""Dead features begin anew: against the procedure, written out for one member."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
import reference
import torch
from ensembles import POOL, SEED, D, N, ensemble, kept, of_member, stream
from making import Pair, arrays, at_width, close, equal, given, members
from reference import Arrays
from torch import Tensor

from ensemble_sae.randomness import generator
from ensemble_sae.train import FunctionalEnsemble, Optimiser

AT, DEAD = 4, [1, 4, 7]
POOLED = torch.cat(POOL)
LOSS = {"resample": "loss", "dead_after": 3, "resample_every": AT}
SILENCED = ("encoder_bias", "gate_bias")


def as_they_are(p: Arrays, b: Arrays, x: np.ndarray) -> np.ndarray:
    return x


def beside_targets(p: Arrays, b: Arrays, x: np.ndarray) -> np.ndarray:
    width = p["encoder"].shape[1]
    return np.concatenate([x[:, :width], x[:, width:] - p["decoder_bias"]], 1)


class Kind(NamedTuple):
    """A signature, how it is set up, and what rows are to its features."""

    name: str
    options: Mapping[str, Any] = {}
    entered: Callable[..., np.ndarray] = as_they_are


KINDS = {
    "untied": Kind("untied"),
    "tied": Kind("tied"),
    "affine": Kind("affine", {"centring": "learned"}, lambda p, b, x: x - p["centre"]),
    "whitened": Kind(
        "untied",
        {"centring": "mean", "whitening": True},
        lambda p, b, x: (x - b["centre"]) @ b["whitening"],
    ),
    "projected": Kind("untied", {"unit_norm": "project"}),
    "transcoder": Kind("transcoder", {}, beside_targets),
    "crosscoder": Kind("crosscoder", {}, lambda p, b, x: x - p["decoder_bias"]),
    "jumprelu": Kind("jumprelu"),
    "gated": Kind("gated"),
    "thresholding": Kind("thresholding"),
}
every = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def pairs_of(kind: Kind, count: int = 2) -> list[Pair]:
    """Members whose features begin with equal numbers, so that there is something to go back to."""
    pairs = members(kind.name, count, D, N, **kind.options)
    for params, _ in pairs:
        for name, tensor in params.items():
            if tensor.shape == (N,):
                params[name] = tensor[:1].repeat(N)
        for name in params.keys() & set(SILENCED):
            params[name].fill_(0.4)  # the others shall fire
    return pairs


def dying(
    kind: Kind, *dynamics: dict, dead: list[int] = DEAD, lr: float = 0.01, **options: Any
) -> FunctionalEnsemble:
    """An ensemble at a step of resampling; these features of its first member are dead."""
    found = ensemble(kind.name, pairs_of(kind), *dynamics, lr=lr, **options)
    for name in found.params.keys() & set(SILENCED):
        found.params[name][0, dead] = -50.0
    for batch in stream(AT):
        found.step(batch)
    return found


def by_hand(
    kind: Kind, found: FunctionalEnsemble, power: float, rows: Tensor, scale: float = 0.2
) -> dict[str, Any]:
    """The first member's params after its resampling."""
    pair = found.member(0)
    case = at_width(reference.CASES[kind.name][0], D)
    case = case._replace(options={**case.options, **kind.options})
    result = case.result(given(case, pair), rows.numpy())
    weights = reference.resampling_weights(result.reconstruction, result.target, power)
    dead = found.mechanisms.dead[0].nonzero()[:, 0].tolist()
    drawn = torch.multinomial(
        torch.tensor(weights),
        len(dead),
        replacement=bool(len(dead) > np.count_nonzero(weights)),
        generator=generator(SEED, "resample", AT),
    )
    params, buffers = arrays(pair[0]), arrays(pair[1])
    directions = kind.entered(params, buffers, rows.numpy())[drawn.numpy()]
    starts = {k: t[0] for k, t in arrays(pairs_of(kind)[0][0]).items() if t.shape == (N,)}
    after = reference.replanted(params, dead, directions, starts, scale)
    return {name: torch.tensor(array) for name, array in after.items()}


@every
@pytest.mark.parametrize(("power", "scale"), [(2.0, 0.2), (0.5, 1.5)])
def test_it_is_the_written_out_procedure(kind: Kind, power: float, scale: float) -> None:
    changed = {"resample_power": power, "resample_scale": scale} if scale != 0.2 else {}
    found = dying(kind, {**LOSS, **changed})
    expected = by_hand(kind, found, power, POOLED, scale)
    assert set(DEAD) <= set(found.mechanisms.dead[0].nonzero()[:, 0].tolist())
    assert found.wants_rows()
    counts = found.resample(POOL)
    assert counts.tolist() == [int(found.mechanisms.dead[0].sum()) + counts[0], 0]
    close(found.member(0)[0], expected, 1e-12)
    assert not found.mechanisms.dead[0].any()
    assert not found.resample(POOL).any()  # once is enough


@every
def test_all_else_has_the_same_bits(kind: Kind) -> None:
    found, plain = dying(kind, LOSS), dying(kind, {"dead_after": 3, "freeze_every": 1000})
    dead = found.mechanisms.dead[0]
    others, features = ~dead, found.mechanisms.features
    found.resample(POOL)
    one, other = found.state_dict(), plain.state_dict()
    for key in (k for k in one if k.split("/")[0] in ("params", "optimiser") and one[k].dim()):
        assert torch.equal(one[key][1], other[key][1]), key
        if key.split("/")[-1] not in features:
            assert torch.equal(one[key][0], other[key][0]), key
            continue
        assert torch.equal(one[key][0][others], other[key][0][others]), key
        if key.startswith("optimiser/"):
            assert not one[key][0][dead].any(), key
    for batch in stream(3, first=AT):
        found.step(batch)
        plain.step(batch)
    equal(*(of_member(e.state_dict(), 1, "params", "optimiser") for e in (found, plain)))


@pytest.mark.parametrize("optimiser", ["adam", "adamw", "radam", "rmsprop", "sgd"])
def test_the_optimiser_forgets_dead_features(optimiser: str) -> None:
    found = dying(KINDS["untied"], LOSS, optimiser=Optimiser(optimiser), lr=1e-4)
    _fill_moments(found)
    found.resample(POOL)
    moments = [t for k, t in found.state_dict().items() if _is_moment(k, t)]
    assert len(moments) == (3 if optimiser in ("rmsprop", "sgd") else 6)
    others = [i for i in range(N) if i not in DEAD]
    for tensor in moments:
        assert not tensor[0, DEAD].any()
        assert (tensor[0, others] == 1).all()
        assert (tensor[1] == 1).all()


def _is_moment(key: str, tensor: Tensor) -> bool:
    return key.startswith("optimiser/") and tensor.dim() > 0


def _fill_moments(found: FunctionalEnsemble) -> None:
    state = kept(found)
    found.load_state_dict({k: t.fill_(1) if _is_moment(k, t) else t for k, t in state.items()})


def test_averages_begin_anew_too() -> None:
    found = dying(KINDS["untied"], {**LOSS, "ema": 0.9})
    before = kept(found)
    found.resample(POOL)
    others = [i for i in range(N) if i not in DEAD]
    for name, tensor in found.params.items():
        average = found.state_dict()[f"mechanisms/average/{name}"][0]
        assert torch.equal(average[DEAD], tensor[0, DEAD])
        assert torch.equal(average[others], before[f"mechanisms/average/{name}"][0, others])


def test_the_power_and_the_kind_of_draw_matter() -> None:
    ways = [{"resample_power": 2.0}, {"resample_power": 0.5}, {"resample": "random"}]
    found = []
    for way in ways:
        found.append(dying(KINDS["untied"], {**LOSS, **way}))
        found[-1].resample(POOL)
    decoders = [e.params["decoder"][0, DEAD] for e in found]
    assert all(not torch.equal(decoders[i], decoders[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("kind", [KINDS["untied"], KINDS["transcoder"]], ids=lambda k: k.name)
def test_random_directions(kind: Kind) -> None:
    found = dying(kind, {**LOSS, "resample": "random"})
    draw = generator(SEED, "resample", AT)
    dead = found.mechanisms.dead[0].nonzero()[:, 0].tolist()
    directions = torch.randn(len(dead), D, generator=draw).double().numpy()
    starts = {"encoder_bias": 0.4}
    expected = reference.replanted(arrays(found.member(0)[0]), dead, directions, starts)
    found.resample(POOL)
    close(found.member(0)[0], {k: torch.tensor(a) for k, a in expected.items()}, 1e-12)


def test_more_dead_features_than_rows() -> None:
    rows, kind = POOLED[:2], KINDS["untied"]
    found = dying(kind, LOSS)
    expected = by_hand(kind, found, 2.0, rows)
    found.resample([rows])
    close(found.member(0)[0], expected, 1e-12)


def test_where_all_are_dead_features_begin_at_unit_norm() -> None:
    found = dying(KINDS["untied"], LOSS, dead=list(range(N)))
    found.resample(POOL)
    params = found.member(0)[0]
    assert params["decoder"].norm(dim=1).tolist() == pytest.approx([1.0] * N)
    assert params["encoder"].norm(dim=1).tolist() == pytest.approx([0.2] * N)


def test_nothing_dead_nothing_changes() -> None:
    found = dying(KINDS["untied"], LOSS, dead=[])
    assert not found.mechanisms.dead.any()
    before = kept(found)
    assert found.resample(POOL).tolist() == [0, 0]
    equal(found.state_dict(), before)


def test_where_all_rows_are_explained_they_are_drawn_alike() -> None:
    """The atoms are the axes and their opposites: the code of a row is its coordinates."""
    pairs = members("untied", 1, 3, 7, l1=0.0, bias_decay=0.0)
    params = pairs[0][0]
    params["decoder"][:6] = torch.cat([torch.eye(3), -torch.eye(3)])
    params["encoder"] = params["decoder"].clone()
    params["encoder_bias"] *= 0
    params["encoder"][6] = 0
    found = ensemble("untied", pairs, LOSS, lr=1e-300)
    pool = POOLED[:, :3]
    for _ in range(AT):
        found.step(pool)
    found.resample([pool])
    chosen = torch.multinomial(
        torch.ones(31).double(), 1, generator=generator(SEED, "resample", AT)
    )
    direction = pool[chosen] / pool[chosen].norm()
    assert found.mechanisms.activity.silent[0].tolist() == [0] * 7
    torch.testing.assert_close(found.params["decoder"][0, 6:], direction)


def test_when() -> None:
    dynamics = [
        {"resample": "loss", "resample_every": 3, "resample_until": 6},
        {"resample": "random", "resample_every": 2, "resample_until": 5},
        {"resample_every": 1},
    ]
    found = ensemble("untied", members("untied", 3, D, N), *dynamics)
    due = {}
    for step, batch in enumerate(stream(12), 1):
        found.step(batch)
        due[step] = found.mechanisms.resampling.due(step)
        assert found.wants_rows() == bool(due[step])
    assert {step: ks for step, ks in due.items() if ks} == {2: [1], 3: [0], 4: [1], 6: [0]}


def test_without_resampling_no_rows_are_wanted() -> None:
    found = ensemble("untied", members("untied", 2, D, N))
    assert not found.wants_rows()
    assert found.resample(POOL).tolist() == [0, 0]


def test_padding_is_never_resampled() -> None:
    pairs = members("masked", 2, D, N)
    padding = [i for i in range(N) if not pairs[0][1]["mask"][i]]
    found = ensemble("masked", pairs, LOSS)
    found.params["encoder_bias"][0] = -50.0
    for batch in stream(AT):
        found.step(batch)
    before = kept(found)
    assert found.resample(POOL).tolist() == [N - len(padding), 0]
    for name, tensor in found.params.items():
        assert torch.equal(tensor[0, padding], before[f"params/{name}"][0, padding])


def test_what_began_anew_is_inside_the_constraints() -> None:
    kind = Kind("positive", {"tied": False, "unit_norm": "project"})
    found = dying(kind, LOSS)
    found.resample([POOLED.abs() - 0.3])
    decoder = found.params["decoder"][0, DEAD]
    assert decoder.min() >= 0
    assert decoder.norm(dim=1).tolist() == pytest.approx([1.0] * len(DEAD), rel=1e-14)


def test_members_that_no_longer_move_are_left_alone() -> None:
    found = dying(KINDS["untied"], LOSS)
    found.buffers["l1"][0] = torch.nan
    for batch in stream(AT, first=AT):
        found.step(batch)
    before = kept(found)
    assert found.wants_rows()
    assert found.resample(POOL).tolist() == [0, 0]
    for name, tensor in found.params.items():
        assert torch.equal(tensor, before[f"params/{name}"])
