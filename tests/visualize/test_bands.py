import math

import numpy as np
import pytest
import torch
from torch import nn

from freqformer.errors import FreqFormerError
from freqformer.factory import create_model
from freqformer.pages import picture_of
from freqformer.tasks.pictures import plain
from freqformer.visualize import agreement, band_pass, bands, spectrum
from freqformer.visualize.bands import SAME, SURE, measure_bands


class HasStripes(nn.Module):
    """Class 1 where there is much of the frequencies above half the Nyquist, otherwise class 0."""

    num_classes = 2
    pretrained_cfg = create_model("test_freqformer").pretrained_cfg

    def forward(self, x):
        high = band_pass(x, 0.5).flatten(2).std(dim=2).mean(dim=1)
        return torch.stack((torch.full_like(high, 0.1), high), dim=1) * 100


def test_a_model_of_stripes_loses_them_to_a_low_pass_alone(photo):
    found = measure_bands(agreement(HasStripes(), [photo(seed=i) for i in range(3)]), (0.25, 0.75))
    assert found.whole == {SAME: 1, SURE: pytest.approx(1)}
    assert found.low[0][SAME] == 0
    assert found.high[0][SAME] == found.high[1][SAME] == found.low[1][SAME] == 1
    assert found.low[0][SURE] == pytest.approx(0, abs=1e-3)


def test_the_whole_band_and_cutoffs_beyond_it_leave_the_score(photo):
    model = create_model("test_gfnet", num_classes=4).eval()
    found = measure_bands(agreement(model, photo()), (0, math.sqrt(2)))
    assert found.low[1][SURE] == pytest.approx(found.whole[SURE], abs=1e-4)
    assert found.high[0] == pytest.approx(found.whole)


def test_scores_are_asked_for_each_band_once_in_order_and_drawn():
    asked = []

    def score(low, high):
        asked.append((low, round(high, 2)))
        return {"top-1 accuracy": high - low}

    figure = bands({"one": score, "two": score}, (0.5, 0.2, 0.5), constant=0.1)
    assert asked == [(0, 1.41), (0, 0.2), (0, 0.5), (0.2, 1.41), (0.5, 1.41)] * 2
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels[-3:] == ["always the largest class", "one", "two"]
    assert figure.axes[0].get_ylabel() == "top-1 accuracy"


@pytest.mark.parametrize("name", ["_h$a_$", "模型", "\\frac{"])
def test_names_are_no_mathematics_and_all_are_shown(photo, capfd, name):
    model = create_model("test_freqformer")
    drawn = [
        spectrum({name: model, "other": model}, photo()),
        bands(dict.fromkeys((name, "other"), lambda low, high: {"score": 1.0}), (0.5,)),
    ]
    for figure in drawn:
        assert picture_of(figure, "").png
        labels = [text.get_text() for text in figure.axes[-1 if figure is drawn[1] else 2].get_legend().get_texts()]
        assert labels[-2:] == [plain(name), "other"]
    assert not capfd.readouterr().err


@pytest.mark.parametrize("cutoffs", [(), (-0.1,), (0.5, 2), (np.nan,)])
def test_cutoffs_that_are_none(cutoffs):
    with pytest.raises(FreqFormerError, match="cutoffs are shares"):
        bands(lambda low, high: {"score": 1.0}, cutoffs)


def test_models_without_classes_or_of_other_tasks(tmp_path, photo, make_segmenter):
    from freqformer.visualize import load_network

    with pytest.raises(FreqFormerError, match="no classifier"):
        agreement(create_model("test_gfnet", num_classes=0), photo())
    with pytest.raises(FreqFormerError, match="needs annotated images"):
        agreement(load_network(make_segmenter(tmp_path / "run"))[0], photo())
