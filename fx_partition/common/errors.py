"""Errors that a user can act on. All are ValueErrors; the message names the thing and the way out."""

from __future__ import annotations


class PartitionError(ValueError):
    """A model, a budget or an option that no plan can be made of."""


class OversizeError(PartitionError):
    """One atom needs more bytes than the budget, and ``oversize="error"`` forbids a partition that spills."""


class PlanMismatchError(PartitionError):
    """A plan that was made for another graph, or that cannot run this one."""


class UnreadableError(PartitionError):
    """A graph with something that analysis cannot read; it names the operator. The backend runs it as one partition."""


class PartitionWarning(UserWarning):
    """The result is right but has fewer partitions, or less certain figures, than was asked for."""
