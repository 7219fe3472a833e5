"""From a sweep file to members: schema, grid, members, groups."""

from ensemble_sae.sweep.groups import groups_of
from ensemble_sae.sweep.member import Group, Member, as_rows
from ensemble_sae.sweep.members import expand
from ensemble_sae.sweep.schema import Sweep, load_sweep

__all__ = ["Group", "Member", "Sweep", "as_rows", "expand", "groups_of", "load_sweep"]
