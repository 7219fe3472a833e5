"""One trained autoencoder, to be used: encode, decode, dictionary, config."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ensemble_sae.data.units import AnyUnits
from ensemble_sae.errors import UserError
from ensemble_sae.signatures import Tensors
from ensemble_sae.sweep import Member


class Sae:
    """A member as a function of rows in the units of the model's activations.

    If the sweep trained on centred or scaled rows, that is done and undone here. The code is in
    the units of the training. A member whose hook has a target reads rows of the inputs and gives
    rows of the targets; rows of several hook points are joined in the order of the hook.

    Args:
        units: that rows are read in.
        target_units: that the reconstruction is in; those of the input if there is no target.
    """

    def __init__(
        self,
        config: Member,
        signature: type[Any],
        params: Tensors,
        buffers: Tensors,
        units: AnyUnits,
        target_units: AnyUnits | None = None,
    ) -> None:
        self.config, self.signature, self.units = config, signature, units
        self.target_units = units if target_units is None else target_units
        self.params, self.buffers = params, buffers

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(iter(self.params.values())).device

    def to(self, device: str | torch.device) -> Sae:
        """The same SAE on another device."""
        params = {name: tensor.to(device) for name, tensor in self.params.items()}
        buffers = {name: tensor.to(device) for name, tensor in self.buffers.items()}
        return Sae(self.config, self.signature, params, buffers, self.units, self.target_units)

    @torch.no_grad()
    def encode(self, activations: Tensor) -> Tensor:
        """The code of rows `[..., d_activation] -> [..., n_dict]`."""
        self._check(activations, self.config.d_activation, "activations")
        rows = self.units.enter(activations.reshape(-1, self.config.d_activation))
        code = self._function("encode")(self.params, self.buffers, rows.to(self._dtype))
        return code.reshape(*activations.shape[:-1], -1)

    @torch.no_grad()
    def decode(self, code: Tensor) -> Tensor:
        """Rows from a code `[..., n_dict] -> [..., d]`: of the targets, or else of the inputs."""
        self._check(code, self.config.n_dict, "code")
        flat = code.reshape(-1, self.config.n_dict).to(self._dtype)
        rows = self._function("decode")(self.params, self.buffers, flat)
        return self.target_units.leave(rows).reshape(*code.shape[:-1], -1)

    @property
    @torch.no_grad()
    def dictionary(self) -> Tensor:
        """The learned directions, unit rows `[n_dict, d_activation]`."""
        return self._function("dictionary")(self.params, self.buffers)

    def __call__(self, activations: Tensor) -> Tensor:
        """The reconstruction of rows `[..., d_activation]`, or what they predict of the targets."""
        return self.decode(self.encode(activations))

    def __repr__(self) -> str:
        c = self.config
        return f"Sae({c.id}: {c.name!r}, {c.d_activation} -> {c.n_dict}, {c.hook or 'own rows'})"

    def _repr_html_(self) -> str:
        from ensemble_sae.run.cards import sae_card

        return sae_card(self)

    @property
    def _dtype(self) -> torch.dtype:
        return next(iter(self.params.values())).dtype

    def _function(self, name: str) -> Any:
        function = getattr(self.signature, name, None)
        if function is None:
            raise UserError(
                f"The signature {self.config.signature!r} has no {name!r}.",
                next_step=f"add a static function {name} to the class: docs/own_signature.md",
            )
        return function

    @staticmethod
    def _check(tensor: Tensor, width: int, what: str) -> None:
        if tensor.shape[-1:] != (width,):
            raise UserError(
                f"These {what} have another width than this SAE.",
                found=str(list(tensor.shape)),
                allowed=f"[..., {width}]",
            )
