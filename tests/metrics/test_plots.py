import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from nmt_ls.metrics.calibration import CalibrationAccumulator
from nmt_ls.metrics.logit_gaps import LogitGapAccumulator
from nmt_ls.metrics.null import null_distribution
from nmt_ls.metrics.plots import (
    CALIBRATED,
    FEW,
    estimator_figure,
    logit_gap_figure,
    new_figure,
    reliability_diagram,
    risk_coverage_figure,
    save_figure,
)
from nmt_ls.metrics.selective import risk_coverage
from nmt_ls.metrics.sweep_plot import Curve, SweepSeries, sweep_figure


@pytest.fixture
def tokens():
    rng = np.random.default_rng(0)
    confidences = rng.beta(2, 1, 2000)
    return confidences, rng.random(2000) < confidences


def series(best, seeds=3):
    temperatures = [0.8, 0.9, 1.0, 1.1, 1.2]
    bowl = (np.array(temperatures) - best) ** 2 + np.zeros((seeds, 1))
    return SweepSeries(
        bleu=Curve(temperatures=temperatures, values=30 - bowl),
        ece=Curve(temperatures=temperatures[::-1], values=bowl[:, ::-1]),
        nll=Curve(temperatures=temperatures, values=2 + bowl),
    )


def lines(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def test_reliability_diagram_draws_the_bins_and_names_the_error(tokens):
    calibration = CalibrationAccumulator(10).update(*tokens).compute()
    band = null_distribution(tokens[0], 10, draws=50).accuracy_band()
    figure = reliability_diagram({"hard": calibration, "smoothed": calibration}, band, "test split")
    upper, lower = figure.axes
    line = lines(upper)[f"hard (ECE\N{NO-BREAK SPACE}{calibration.ece:.3f})"]
    full = calibration.bin_counts >= 20
    np.testing.assert_allclose(line.get_xdata()[full], calibration.bin_confidence[full])
    np.testing.assert_allclose(line.get_ydata(), np.where(full, calibration.bin_accuracy, np.nan))
    (legend,) = figure.legends
    assert {text.get_text() for text in legend.get_texts()} >= {CALIBRATED}
    assert upper.get_title(loc="left") == "test split"
    np.testing.assert_allclose(lower.patches[0].get_data().values, calibration.bin_counts / 2000)


def test_bins_of_few_examples_are_pale_and_joined_by_no_line():
    """19 of 1,019 at 0.25, and of 30,020 less than a thousandth at 0.55: the other bins are full."""
    for sizes, few in (({0.25: 19, 0.55: 200, 0.65: 300, 0.95: 500}, 0.25), ({0.55: 20, 0.95: 30_000}, 0.55)):
        confidences = np.repeat(list(sizes), list(sizes.values()))
        calibration = CalibrationAccumulator(10).update(confidences, confidences > 0.5).compute()
        band = null_distribution(confidences, 10, draws=20).accuracy_band()
        figure = reliability_diagram({"hard": calibration}, band)
        figure.draw_without_rendering()
        upper = figure.axes[0]
        whole = next(line for label, line in lines(upper).items() if label.startswith("hard"))
        enough = [size for size in sizes if size != few]
        assert whole.get_xdata()[np.isfinite(whole.get_ydata())] == pytest.approx(enough)
        (pale,) = [line for line in upper.get_lines() if line.get_alpha() and len(line.get_xdata())]
        assert (pale.get_xdata(), pale.get_linestyle()) == (pytest.approx([few]), "None")
        assert pale.get_ydata() == [few > 0.5]
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()][-1] == FEW
        filled, bars = upper.collections
        assert [bar[0, 0] for bar in bars.get_segments()] == pytest.approx([0.95])  # the others are neighbours
        widths = [np.ptp(path.vertices[:, 0]) for path in filled.get_paths()]
        assert max(widths) == pytest.approx(0.1 if len(enough) > 1 else 0)


@pytest.mark.parametrize("names", [["model"], ["hard", "a run whose long name is folded in two", "smoothed"]])
def test_the_legend_stands_below_both_panels(tokens, names):
    calibration = CalibrationAccumulator(10).update(*tokens).compute()
    figure = reliability_diagram(dict.fromkeys(names, calibration))
    figure.draw_without_rendering()
    (legend,) = figure.legends
    below = min(axes.get_tightbbox().y0 for axes in figure.axes)
    assert 0 <= legend.get_window_extent().y0 < legend.get_window_extent().y1 <= below
    upper, lower = (axes.get_position().height * figure.get_figheight() for axes in figure.axes)
    assert upper > 2.3  # inches: however many lines, the panels keep their size
    assert upper == pytest.approx(3 * lower, rel=0.01)


def test_every_line_differs_in_grey_too(tokens):
    calibration = CalibrationAccumulator().update(*tokens).compute()
    figure = reliability_diagram(dict.fromkeys("abcdef", calibration))
    drawn = [line for line in figure.axes[0].get_lines() if "None" not in (line.get_marker(), line.get_linestyle())]
    assert len(drawn) == len({line.get_marker() for line in drawn}) == len({line.get_color() for line in drawn}) == 6


def test_sweep_marks_the_best_temperature_of_each_figure():
    figure = sweep_figure({"hard": series(1.1), "smoothed": series(0.9)}, "en-de")
    assert len(figure.axes) == 4
    for axes in figure.axes:
        marked = [line.get_xdata()[0] for line in axes.get_lines() if len(line.get_xdata()) == 1]
        assert marked == pytest.approx([1.1, 0.9])
        curves = [line for line in axes.get_lines() if len(line.get_xdata()) == 5]
        assert all((np.diff(line.get_xdata()) > 0).all() for line in curves)
        assert len(axes.collections) == 2  # a band for each recipe
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["hard", "smoothed", "best temperature"]  # and no arrows


def test_an_arrow_points_beyond_the_grid_where_its_edge_is_best():
    figure = sweep_figure({"hard": series(0.7), "smoothed": series(1.3), "other": series(1.0)})
    for axes in figure.axes:
        single = [line for line in axes.get_lines() if len(line.get_xdata()) == 1]
        arrows = [line for line in single if not isinstance(line.get_marker(), str)]
        assert [(line.get_xdata()[0], np.sign(line.get_marker().vertices[:, 0].mean())) for line in arrows] == [
            (0.8, -1), (1.2, 1)
        ]  # fmt: skip
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names[-2:] == ["best temperature", "at the edge of its grid"]
    at_one = Curve(temperatures=[1.0], values=np.ones((1, 1)))
    figure = sweep_figure({"hard": SweepSeries(bleu=at_one, ece=at_one, nll=at_one)})
    assert len(figure.legends[0].get_texts()) == 2  # of one temperature there is no edge


def test_one_seed_has_no_band():
    figure = sweep_figure({"hard": series(1.0, seeds=1)})
    assert all(not axes.collections for axes in figure.axes)


def test_risk_coverage_ends_at_the_error_rate(tokens):
    curve = risk_coverage(*tokens)
    figure = risk_coverage_figure({"hard": curve})
    line = lines(figure.axes[0])[f"hard (AURC\N{NO-BREAK SPACE}{curve.aurc:.3f})"]
    assert line.get_xdata()[-1] == 1.0
    assert line.get_ydata()[-1] == pytest.approx(1 - tokens[1].mean())
    assert len(line.get_xdata()) <= 800


def test_figures_are_saved_as_png_and_svg_with_the_same_bytes_each_time(tokens, tmp_path):
    calibration = CalibrationAccumulator().update(*tokens).compute()
    saved = [save_figure(reliability_diagram({"hard": calibration}), tmp_path / name / "fig.1") for name in "ab"]
    assert [path.name for path in saved[0]] == ["fig.1.png", "fig.1.svg"]
    for first, second in zip(*saved, strict=True):
        assert first.read_bytes() == second.read_bytes()
    assert saved[0][0].read_bytes().startswith(b"\x89PNG")
    assert ElementTree.parse(saved[0][1]).getroot().tag.endswith("svg")


def test_what_is_not_drawn_to_the_end_leaves_the_figure_that_was_there(tmp_path):
    for name in ("fig.png", "fig.svg"):
        (tmp_path / name).write_text("before")

    def broken() -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_figure(new_figure(1, 1), tmp_path / "fig", svg=broken)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"fig.png": "before", "fig.svg": "before"}
    save_figure(new_figure(1, 1), tmp_path / "fig", svg=lambda: "after")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fig.png", "fig.svg"]
    assert (tmp_path / "fig.svg").read_text() == "after"


def test_the_library_and_its_plots_leave_pyplot_and_the_look_of_others_alone():
    code = (
        "import sys, nmt_ls.metrics; assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules\n"
        "import nmt_ls.metrics.calibration, nmt_ls.metrics.statistics, nmt_ls.metrics.translation\n"
        "assert not {'torch', 'matplotlib', 'sacrebleu'} & set(sys.modules)\n"
        "import matplotlib, numpy as np\n"
        "from nmt_ls.metrics import plots, selective\n"
        "plots.risk_coverage_figure({'a': selective.risk_coverage([0.5, 0.9], [0, 1])})\n"
        "assert 'matplotlib.pyplot' not in sys.modules and matplotlib.rcParams['font.size'] == 10"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_wrong_inputs_are_refused():
    for draw in (reliability_diagram, sweep_figure, risk_coverage_figure):
        with pytest.raises(ValueError, match="at least one system"):
            draw({})
    with pytest.raises(ValueError, match=r"\[seeds, 2 temperatures\]"):
        Curve(temperatures=[1.0, 2.0], values=np.zeros(2))


def test_logit_gaps_are_densities_with_the_ideal_drawn_where_there_is_one():
    logits = torch.tensor([[6.0, 0.0, 1.0], [4.0, 0.0, -1.0]])
    gaps = LogitGapAccumulator().update(logits, torch.tensor([0, 0])).compute()
    figure = logit_gap_figure({"α = 0.1": gaps, "α = 0": gaps}, {"α = 0.1": 5.25, "α = 0": np.inf}, "test split")
    upper, lower = figure.axes
    for axes, where in ((upper, [4, 5, 6]), (lower, [4.5, 5.5])):
        values, edges, _ = axes.patches[0].get_data()
        assert (np.asarray(values) * np.diff(edges)).sum() == pytest.approx(1)
        drawn = [(low, high) for value, low, high in zip(values, edges[:-1], edges[1:], strict=True) if value]
        assert len(drawn) == len(where)
        assert all(low - 1e-9 <= gap <= high for gap, (low, high) in zip(where, drawn, strict=True))
        assert [line.get_xdata()[0] for line in axes.get_lines()] == [5.25]
    assert "ideal 5.25" in lines(upper)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert legend.get_window_extent().y1 <= min(axes.get_tightbbox().y0 for axes in figure.axes)
    texts = [text.get_text().replace("\N{NO-BREAK SPACE}", " ") for text in legend.get_texts()]
    assert "α = 0 (mean 5.00, sd over classes 0.50)" in texts  # gaps of 6 and 5, and of 4 and 5
    low, high = upper.get_xlim()
    assert low < 4 < 6 < high
    with pytest.raises(ValueError, match="at least one"):
        logit_gap_figure({})


def test_estimators_stand_beside_the_exact_value():
    curves = {"equal-width": {100: (0.05, 0.01), 1000: (0.02, 0.005)}, "smooth": {100: (0.04, 0.0)}}
    figure = estimator_figure(curves, 0.015)
    (axes,) = figure.axes
    assert list(lines(axes)["exact 0.0150"].get_ydata()) == [0.015, 0.015]
    drawn = [bars.lines[0] for bars in axes.containers]
    assert [list(line.get_ydata()) for line in drawn] == [[0.05, 0.02], [0.04]]
    assert drawn[0].get_xdata() == pytest.approx([100, 1000], rel=0.05)
    with pytest.raises(ValueError, match="at least one"):
        estimator_figure({}, 0.1)
