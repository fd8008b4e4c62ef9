import pytest

from graphrt import Settings, SettingsError
from graphrt.settings import AUTO


def test_defaults_environment_and_keywords_in_that_order():
    assert Settings.from_env({}).op_offload_min_batch == 32
    assert Settings.from_env({"GRAPH_OP_OFFLOAD_MIN_BATCH": "auto"}).op_offload_min_batch == AUTO
    environment = {"GRAPH_OP_OFFLOAD_MIN_BATCH": "64", "GRAPH_THREADS": "3"}
    assert Settings.from_env(environment).op_offload_min_batch == 64
    assert Settings.from_env(environment, op_offload_min_batch=1, threads=None).op_offload_min_batch == 1
    assert Settings.from_env(environment).thread_count == 3
    assert Settings.from_env({}).thread_count >= 1


def test_override_rules_may_hold_commas_and_equals_signs():
    rules = Settings.from_env({"GRAPH_TENSOR_OVERRIDES": r"blk\.\d{1,3}=cpu; a=b=cpu"}).tensor_overrides
    assert rules == (r"blk\.\d{1,3}=cpu", "a=b=cpu")


def test_an_unreadable_value_names_the_variable():
    with pytest.raises(SettingsError, match=r'GRAPH_THREADS="many" cannot be read'):
        Settings.from_env({"GRAPH_THREADS": "many"})
    with pytest.raises(SettingsError, match=r'GRAPH_THREADS="-1" cannot be read \(must be 0 or more\)'):
        Settings.from_env({"GRAPH_THREADS": "-1"})


def test_an_unknown_keyword_lists_the_known_ones():
    with pytest.raises(SettingsError, match=r"unknown: thread; known: .*threads"):
        Settings.from_env({}, thread=1)
