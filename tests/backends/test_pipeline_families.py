"""Models of the zoo as pipelines: two stages of compiled code that needs no Python, equal to eager."""

import warnings

import pytest
import torch
from test_families import TOLERANCE, error, quick_and_slow
from zoo import FAMILIES

import fx_partition
from fx_partition import PartitionWarning

QUICK = ["mlp"]


@pytest.mark.parametrize("name", quick_and_slow(QUICK, list(FAMILIES)))
def test_a_stream_equals_eager(name):
    family = FAMILIES[name]
    model = family.build()
    args, kwargs = family.inputs(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", PartitionWarning)
        pipe = fx_partition.pipeline(model, kwargs or args, devices=["cores:0", "cores:0"])
    with pipe:
        assert pipe.plan.num_partitions == 2
        requests = [family.inputs(2, seed=seed) for seed in range(3)]
        results = list(pipe.map(kwargs or args for args, kwargs in requests))
        for (args, kwargs), result in zip(requests, results, strict=True):
            with torch.no_grad():
                expected = family.output(model(*args, **kwargs))
            assert error(family.output(result), expected) <= TOLERANCE
