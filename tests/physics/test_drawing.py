"""Drawings: shapes that compare by value, and limits around all of them."""

from __future__ import annotations

import dataclasses

import pytest

from toolkit import Cross, Disc, Drawing, Line, Polygon


def test_limits_lie_a_margin_beyond_all_shapes():
    shapes = [
        Line(((0.0, 0.0), (2.0, -1.0)), "pole"),
        Polygon(((0.5, 0.5), (1.0, 0.5), (1.0, 3.0)), "box"),
        Disc((-4.0, 1.0), 0.5, "ball"),
        Cross((0.0, -7.0)),
    ]
    drawing = Drawing.around(iter(shapes), 0.25)
    assert drawing.shapes == tuple(shapes)
    # The left of the disc, the end of the line, the cross and the tip of the polygon.
    assert drawing.limits == ((-4.75, 2.25), (-7.25, 3.25))


def test_drawings_compare_by_value_and_do_not_change():
    disc = Disc((1.0, 2.0), 0.5)
    assert disc.label == ""
    assert Drawing.around([disc], 1.0) == Drawing((disc,), ((-0.5, 2.5), (0.5, 3.5)))
    assert len({disc, Disc((1.0, 2.0), 0.5), Disc((1.0, 2.0), 0.6)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        disc.radius = 2.0  # type: ignore[misc]
