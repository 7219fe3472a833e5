"""From a sweep file to members: schema, grid, members, groups."""

from ensemble_sae.sweep.groups import groups_of
from ensemble_sae.sweep.member import Group, Member
from ensemble_sae.sweep.members import expand
from ensemble_sae.sweep.schema import Sweep, load_sweep

__all__ = ["Group", "Member", "Sweep", "expand", "groups_of", "load_sweep"]
