"""From a sweep file to members: schema, grid, members, groups."""

from ensemble_sae.sweep.members import Group, Member, expand, groups_of
from ensemble_sae.sweep.schema import Sweep, load_sweep

__all__ = ["Group", "Member", "Sweep", "expand", "groups_of", "load_sweep"]
