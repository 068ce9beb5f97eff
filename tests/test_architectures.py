"""The figure of the architectures: nothing in it overlaps, and the file in docs/ is what the script draws."""

from itertools import combinations

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread

from docs import architectures


def test_texts_lie_in_their_boxes_and_boxes_beside_each_other():
    figure, panels = architectures.draw()
    renderer = FigureCanvasAgg(figure).get_renderer()
    assert len(panels) == 4
    for panel in panels:
        for box in panel.boxes:
            for text in box.texts:
                extent = text.get_window_extent(renderer)
                width = extent.width / figure.dpi
                assert width < box.width - 0.06, f"{text.get_text()!r} is {width:.2f} inches wide, its box {box.width}"
        for one, other in combinations(panel.boxes, 2):
            beside = abs(one.x - other.x) >= (one.width + other.width) / 2
            assert beside or abs(one.y - other.y) > architectures.HEIGHT


def test_figure_in_docs_is_up_to_date(tmp_path):
    architectures.save(tmp_path / "drawn.png")
    drawn, kept = imread(tmp_path / "drawn.png"), imread(architectures.FIGURE)
    assert drawn.shape == kept.shape
    changed = np.abs(drawn - kept).max(2) > 0.1
    assert changed.mean() < 1e-5  # another processor may round a pixel otherwise
