"""Errors that a user can act on. All are ValueErrors; each message names what is wrong and the way out."""

from __future__ import annotations


class PartitionError(ValueError):
    """A model, a budget or an option from which no plan can be made."""


class OversizeError(PartitionError):
    """One atom needs more bytes than the budget, and ``oversize="error"`` forbids a partition that spills."""


class PlanMismatchError(PartitionError):
    """A plan that was made for another graph, or that cannot run this one."""


class UnreadableError(PartitionError):
    """A graph that the analysis cannot read; the message names the operator. The backend runs it as one partition."""


class PartitionWarning(UserWarning):
    """The result is right, but it has fewer partitions or less certain figures than the user asked for."""
