"""The settings of an adaptation run."""

import pytest

from freqformer.tasks import AdaptationConfig


@pytest.mark.parametrize(
    ("given", "kept"), [("none", "none"), ("None", "none"), ("freqfit", "filter2d"), ("FreqFit*", "filter2d_real")]
)
def test_frequency_modules_are_named_as_upstream_does_or_none(given: str, kept: str) -> None:
    config = AdaptationConfig(data_set="DIGITS", freqfit=given)
    config.check()
    assert config.freqfit == kept


def test_upstreams_words_for_methods_are_understood() -> None:
    assert AdaptationConfig(method="head").method == "linear"
    assert AdaptationConfig(method="tinytl-bias").method == "bias"
