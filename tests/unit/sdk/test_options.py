"""Options of tasks are refused by the script that sets them, and not only by the relay."""

from __future__ import annotations

import warnings

import pytest

from mep_sdk import Executor
from mep_sdk.task_options import checked_options


def test_a_walltime():
    for good in (None, 0, 1, 2.5):
        assert checked_options(good, None, None, None, 0).walltime_s == good


@pytest.mark.parametrize("walltime", [-1, float("nan")])
def test_a_walltime_out_of_range(walltime):
    with pytest.raises(ValueError, match="walltime_s is "):
        checked_options(walltime, None, None, None, 0)


@pytest.mark.parametrize("walltime", ["00:10:00", True, [1]])
def test_a_walltime_that_is_no_number(walltime):
    with pytest.raises(TypeError, match="walltime_s is a number of seconds"):
        checked_options(walltime, None, None, None, 0)


def test_a_misspelt_attribute_of_an_executor_is_warned_of():
    with Executor(relay_url="http://127.0.0.1:9", token="t") as executor:
        with pytest.warns(
            UserWarning, match="no attribute 'user_endpoint_confg'.* Did you mean 'user_endpoint_config'"
        ):
            executor.user_endpoint_confg = {}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            executor.walltime_s = 5
            executor.user_endpoint_config = {"a": 1}
            executor.resource_specification = {"num_nodes": 1}
            executor.task_group_id = None
