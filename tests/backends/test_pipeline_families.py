"""Models of the zoo as pipelines: equal eager, for another batch too, and overlapping without Python."""

import pytest
import torch
from torch import nn
from zoo import FAMILIES

import fx_partition
from fx_partition import PartitionWarning
from fx_partition.backends.program import make_program
from fx_partition.passes.capture import capture
from fx_partition.passes.gather import gather_facts
from fx_partition.passes.split import cut, planned_graph

TOLERANCE = 2e-5
