"""What a member's step costs."""

from __future__ import annotations

from ensemble_sae.signatures import resolve
from ensemble_sae.signatures.protocol import optional
from ensemble_sae.sweep import Member


def member_flop(member: Member, batch_size: int, n_dict: int | None = None) -> float:
    """FLOP of one dense step of one member.

    The encoder's product and its gradient are as wide as the input; the decoder's product, its
    gradient and the code's are as wide as what is reconstructed, which is the input itself if the
    member has no target: 10 B n d then. Signatures that compute more say so (`products`).

    Args:
        n_dict: features of the stack, for a member that is padded; default: its own.
    """
    d_in, d_out = member.d_activation, member.d_target or member.d_activation
    width = 2.0 * d_in + 3.0 * d_out
    if products := optional(resolve(member.signature), "products"):
        width = products(member.hyperparameters) * d_in
    return 2.0 * batch_size * (n_dict or member.n_dict) * width
