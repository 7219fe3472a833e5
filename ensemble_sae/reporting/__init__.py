"""A run as one page: what was trained, what came out, what members' features respond to."""

from ensemble_sae.reporting.writing import write_report

__all__ = ["write_report"]
