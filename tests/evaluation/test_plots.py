import numpy as np
import pytest

from adaptx.evaluation.plots import confusion_plot, scores_plot
from adaptx.evaluation.report import Report
from adaptx.evaluation.side_by_side import SideBySide

LABELS = ("afya", "michezo", "siasa")


def report(seed, labels=LABELS, rows=60):
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, len(labels), rows)
    guessed = generator.integers(0, len(labels), rows)
    return Report(labels, targets, np.where(generator.random(rows) < 0.7, targets, guessed))


def pixels(path):
    """The picture as floats `[height, width, 4]`, read by another library than wrote it."""
    from PIL import Image

    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    return np.asarray(Image.open(path).convert("RGB"), dtype=float) / 255


def test_a_confusion_matrix_is_a_picture_of_its_counts(tmp_path):
    perfect = Report(LABELS, np.arange(3).repeat(9), np.arange(3).repeat(9))
    confusion_plot(perfect, tmp_path / "perfect.png", "sw-topics", "sw")
    confusion_plot(report(1), tmp_path / "usual.png", "sw-topics", "sw")
    one, two = pixels(tmp_path / "perfect.png"), pixels(tmp_path / "usual.png")
    assert min(one.shape[:2]) > 400
    full = np.array([8, 48, 107]) / 255  # the last colour of Blues, for a share of 1
    dark = [(np.abs(image - full).max(axis=2) < 0.02).mean() for image in (one, two)]
    assert dark[0] > 0.08
    assert dark[1] < dark[0] / 4


@pytest.mark.parametrize("adapters", [1, 3, 10])
def test_scores_by_language_are_a_picture_with_each_adapters_colour(tmp_path, adapters):
    from matplotlib.colors import to_rgb

    from adaptx.evaluation.plots import COLOURS

    reports = {f"adapter-{i}": {"sw": report(i), "en": report(i, rows=90)} for i in range(adapters)}
    scores_plot(SideBySide(reports), tmp_path / "scores.png")
    image = pixels(tmp_path / "scores.png")
    assert min(image.shape[:2]) > 500
    for i, colour in enumerate(COLOURS):
        seen = (np.abs(image - to_rgb(colour)).max(axis=2) < 0.01).mean()
        assert (seen > 0.005) == (i < adapters)


def test_the_same_report_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        confusion_plot(report(1), tmp_path / f"{name}.png", "sw-topics", "sw")
        scores_plot(SideBySide({"a": {"sw": report(1)}}), tmp_path / f"{name}-scores.png")
    for kind in ("", "-scores"):
        one, two = (tmp_path / f"{name}{kind}.png" for name in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


@pytest.mark.filterwarnings("error")  # matplotlib warns of a glyph that it lacks
def test_labels_of_any_script_and_length_are_drawn_or_numbered(tmp_path):
    labels = (
        "ስፖርት", "हिन्दी", "体育", "العربية", "ߒߞߏ", "$x_1 and $5", "_", "a|b\nc", "x" * 200,
        "\U000f0000",
    )  # fmt: skip
    confusion_plot(report(1, labels), tmp_path / "c.png", "ስፖርት $", "x" * 40)
    names = {label: {"sw": report(1, labels)} for label in labels}
    scores_plot(SideBySide(names), tmp_path / "s.png")
    assert max(pixels(tmp_path / "c.png").shape) < 3000
    assert pixels(tmp_path / "s.png").std() > 0.05


def test_what_no_font_draws_becomes_its_number():
    from adaptx.evaluation.plots import _drawable

    families, names = _drawable(["afya", "\U000f0000", "x" * 40])
    assert families[0] == "DejaVu Sans"
    assert names == ["afya", "#2", "x" * 29 + "…"]


def test_many_labels_fit_into_one_picture(tmp_path):
    labels = tuple(f"intent_{i}" for i in range(80))
    confusion_plot(report(1, labels, 2000), tmp_path / "c.png", "intents", "sw")
    assert max(pixels(tmp_path / "c.png").shape) < 6000


def test_plots_leave_pyplot_and_its_settings_alone(tmp_path):
    import matplotlib
    from matplotlib import pyplot

    before = dict(matplotlib.rcParams)
    confusion_plot(report(1), tmp_path / "c.png", "a", "sw")
    assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == []
