"""Published studies, each a sweep, an analysis and a page with figures: `STUDIES`."""

from ensemble_sae.studies.request import Request

STUDIES = {
    "toy_96": "ensemble_sae.studies.toy_96",
    "init_study": "ensemble_sae.studies.init_study",
    "overcomplete_tricks": "ensemble_sae.studies.overcomplete_tricks",
    "positions": "ensemble_sae.studies.positions",
}

__all__ = ["STUDIES", "Request"]
