"""Figures of merit."""

from .error_rates import ErrorRates

__all__ = ["ErrorRates"]
