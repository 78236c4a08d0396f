import subprocess
import sys

import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from PIL import Image

from jax_excite.errors import ImageError
from jax_excite.pictures import draw_grid, heat_map, overlay_heat_map, scale


def fields(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


# scale


@pytest.mark.parametrize(
    ("mode", "axes"), [("cell", (2, 3, 4)), ("row", (1, 2, 3, 4)), ("global", (0, 1, 2, 3, 4))]
)
def test_scale_shares_a_range_by_mode(mode, axes):
    cells = fields(2, 3, 4, 5, 3) * np.array([1.0, 10.0, 100.0]).reshape(3, 1, 1, 1)
    scaled = scale(cells, mode)
    assert scaled.dtype == np.float32
    np.testing.assert_array_equal(scaled.min(axes), 0)
    np.testing.assert_array_equal(scaled.max(axes), 1)
    low, high = cells.min(axes, keepdims=True), cells.max(axes, keepdims=True)
    np.testing.assert_allclose(low + scaled * (high - low), cells, rtol=0, atol=1e-4)


def test_scale_takes_one_cell_a_jax_array_and_tiny_fields():
    cell = fields(4, 5, 3)
    for mode in ("cell", "global"):
        np.testing.assert_array_equal(scale(jnp.asarray(cell, jnp.float32), mode).max(), 1)
        np.testing.assert_allclose(scale(cell * 1e-30, mode), scale(cell, mode), atol=1e-6)


@pytest.mark.parametrize("mode", ["cell", "row", "global"])
@pytest.mark.parametrize("value", [0.0, -3.0])
def test_scale_makes_constant_cells_mid_grey(mode, value):
    np.testing.assert_array_equal(scale(np.full((1, 2, 4, 4, 3), value), mode), 0.5)


def test_scale_of_one_constant_cell_leaves_the_others():
    cells = fields(2, 4, 4, 3)
    cells[0] = 0
    scaled = scale(cells)
    np.testing.assert_array_equal(scaled[0], 0.5)
    np.testing.assert_array_equal(scaled[1], scale(cells[1]))


@pytest.mark.parametrize("function", [scale, heat_map])
@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 1), (0, 4, 3), (3,)])
def test_fields_of_a_wrong_shape_are_refused(function, shape):
    with pytest.raises(ImageError, match=r"shape \(.*\[\.\.\., H, W, 3\]"):
        function(np.zeros(shape))


def test_scale_refuses_what_it_cannot_scale():
    with pytest.raises(ImageError, match="hold NaN or infinity"):
        scale(np.full((4, 4, 3), np.nan))
    with pytest.raises(ImageError, match=r"\[\.\.\., C, H, W, 3\]"):
        scale(np.zeros((4, 4, 3)), "row")
    with pytest.raises(ImageError, match="mode is 'all': give one of cell, row, global"):
        scale(np.zeros((4, 4, 3)), "all")  # pyright: ignore[reportArgumentType]


# heat_map and overlay_heat_map


def test_heat_map_is_the_signed_sum_with_zero_kept():
    field = fields(2, 4, 5, 3)
    field[0, 0, 0] = (1, -3, 2)
    heat = heat_map(field)
    total = field.sum(-1)
    assert heat[0, 0, 0] == 0
    np.testing.assert_array_equal(np.abs(heat).max((1, 2)), 1)
    np.testing.assert_array_equal(np.sign(heat), np.sign(total))
    np.testing.assert_allclose(heat[1] / heat[1, 0, 0], total[1] / total[1, 0, 0], rtol=1e-5)
    np.testing.assert_array_equal(heat_map(-field), -heat)


def test_heat_maps_that_share_a_range():
    field = fields(2, 3, 4, 5, 3)
    field[1, 2] *= 100
    row, together = heat_map(field, "row"), heat_map(field, "global")
    np.testing.assert_array_equal(np.abs(row).max((1, 2, 3)), 1)
    np.testing.assert_allclose(row[0] / np.abs(row[0]).max(), heat_map(field[0], "row"), rtol=1e-6)
    assert np.abs(together[1]).max() == 1 > 10 * np.abs(together[0]).max()
    image = np.zeros_like(field)
    overlaid = overlay_heat_map(image, field, "global")
    np.testing.assert_allclose(overlaid[1, 2], overlay_heat_map(image[0, 0], field[1, 2]), atol=0.6)
    assert np.abs(overlaid[0] - 0.5).max() < 0.2 < np.abs(overlaid[1, 2] - 0.5).max()


def test_heat_map_of_nothing_is_zero():
    np.testing.assert_array_equal(heat_map(np.zeros((4, 5, 3))), np.zeros((4, 5)))


def test_overlay_is_red_where_positive_blue_where_negative_and_grey_where_zero():
    field = np.zeros((4, 5, 3))
    field[0], field[1] = 2, -2
    image = np.full((4, 5, 3), 0.5)
    image[3] = (1, -1, 0)
    seen = overlay_heat_map(image, field)
    assert seen.dtype == np.float32
    assert seen.min() >= 0
    assert seen.max() <= 1
    assert (seen[0, :, 0] > seen[0, :, 2] + 0.5).all()
    assert (seen[1, :, 2] > seen[1, :, 0] + 0.5).all()
    np.testing.assert_allclose(seen[2], 0.75)
    np.testing.assert_allclose(seen[3], 0.5)


def test_overlay_of_nothing_or_of_a_single_pixel_is_safe():
    image = np.zeros((2, 30, 30, 3))
    field = np.zeros_like(image)
    field[1, 7, 7] = 1
    seen = overlay_heat_map(image, field)
    np.testing.assert_array_equal(seen[0], 0.5)
    assert seen[1, 7, 7, 0] > seen[1, 7, 7, 2]


# draw_grid


def uniform(*shape):
    return np.random.default_rng(0).uniform(0.1, 0.9, (*shape, 3))


def drawn(path) -> np.ndarray:
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.asarray(image)


def find(picture: np.ndarray, cell: np.ndarray) -> tuple[int, int]:
    """Where a cell lies in the picture, pixel for pixel."""
    height, width, _ = cell.shape
    for y, x in zip(*np.nonzero((picture == cell[0, 0]).all(-1)), strict=True):
        if np.array_equal(picture[y : y + height, x : x + width], cell):
            return int(y), int(x)
    raise AssertionError("the cell is not in the picture")


def positions(picture: np.ndarray, cells: np.ndarray, times: int) -> list[list[tuple[int, int]]]:
    pixels = np.rint(cells * 255).astype(np.uint8).repeat(times, axis=2).repeat(times, axis=3)
    return [[find(picture, cell) for cell in row] for row in pixels]


@pytest.mark.parametrize(("side", "times"), [(224, 1), (32, 7), (300, 1)])
def test_cells_are_drawn_pixel_for_pixel_in_their_places(tmp_path, side, times):
    cells = uniform(2, 3, side, side)
    draw_grid(tmp_path / "grid.png", cells, ["a", "b"], ["c", "d", "e"], title="f")
    places = positions(drawn(tmp_path / "grid.png"), cells, times)
    for row in range(2):
        assert len({y for y, _ in places[row]}) == 1
    for column in range(3):
        assert len({places[row][column][1] for row in range(2)}) == 1
    assert places[0][0][0] + side * times < places[1][0][0]
    assert places[0][0][1] + side * times < places[0][1][1]


LONG = "bicycle-built-for-two and a_very_long_file_name_without_any_blank.JPEG " * 4


def test_titles_stay_in_their_room_however_long(tmp_path):
    cells = uniform(2, 12, 64, 64)
    side = 64 * 4  # 64 pixels, drawn four times as large
    draw_grid(tmp_path / "grid.png", cells, [LONG, "b"], [LONG] * 12, title=LONG * 9)
    picture = drawn(tmp_path / "grid.png")
    places = positions(picture, cells, 4)
    ink = np.any(picture < 128, axis=-1)
    for edge in (ink[:8], ink[-8:], ink[:, :8], ink[:, -8:]):
        assert not edge.any()
    (top, left), (below, _) = places[0][0], places[1][0]
    assert ink[top - 40 : top - 3].any()
    assert ink[top:below, : left - 3].any()
    assert not ink[below - 6 : below].any()
    for _, x in places[0][1:]:  # nothing between the columns of titles
        assert not ink[top - 200 : top, x - 6 : x].any()
    assert not ink[top : below + side, left - 6 : left].any()


def test_titles_are_text_not_formulas_or_markup(tmp_path):
    with matplotlib.rc_context({"text.usetex": True}):
        draw_grid(tmp_path / "a.png", uniform(1, 1, 8, 8), [r"$\frac{$"], [r"100 % & #"])
    assert drawn(tmp_path / "a.png").shape[0] > 224


def test_empty_titles_take_no_room(tmp_path):
    cells = uniform(1, 2, 224, 224)
    draw_grid(tmp_path / "bare.png", cells, [""], ["", ""])
    draw_grid(tmp_path / "full.png", cells, ["row"], ["one", "two"], title="title")
    bare, full = drawn(tmp_path / "bare.png"), drawn(tmp_path / "full.png")
    (y, x), _ = positions(bare, cells, 1)[0]
    assert x == y < 20
    assert full.shape[0] > bare.shape[0]
    assert full.shape[1] > bare.shape[1]


def test_a_line_break_in_a_title_is_kept(tmp_path):
    cells = uniform(1, 1, 224, 224)
    draw_grid(tmp_path / "one.png", cells, [""], ["a b"])
    draw_grid(tmp_path / "two.png", cells, [""], ["a\nb"])
    assert drawn(tmp_path / "two.png").shape[0] > drawn(tmp_path / "one.png").shape[0]


@pytest.mark.parametrize("mark", ["_", "-", "/"])
def test_a_file_name_is_broken_between_its_words(tmp_path, mark):
    cells = uniform(1, 1, 224, 224)
    first, second = f"{12 * 'n'}{mark}", f"{12 * 'n'}.jpg"
    draw_grid(tmp_path / "one.png", cells, [first + second], ["c"])
    draw_grid(tmp_path / "two.png", cells, [f"{first}\n{second}"], ["c"])
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_drawing_is_repeatable_and_leaves_only_its_file(tmp_path):
    path = tmp_path / "grid.png"
    path.write_bytes(b"old")
    settings = dict(matplotlib.rcParams)
    draw_grid(path, uniform(1, 1, 8, 8), ["a"], ["b"])
    first = path.read_bytes()
    draw_grid(str(path), jnp.asarray(uniform(1, 1, 8, 8)), ["a"], ["b"])
    assert path.read_bytes() == first
    assert list(tmp_path.iterdir()) == [path]
    assert dict(matplotlib.rcParams) == settings


def test_a_drawing_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    def fail(self, file, *_):
        file.write_bytes(b"half")
        raise OSError("no space left")

    path = tmp_path / "grid.png"
    path.write_bytes(b"old")
    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="no space left"):
        draw_grid(path, uniform(1, 1, 8, 8), ["a"], ["b"])
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("cells", "rows", "columns", "message"),
    [
        (np.zeros((1, 4, 4, 3)), 1, 1, r"shape \(1, 4, 4, 3\): give \[R, C, H, W, 3\]"),
        (np.zeros((0, 1, 4, 4, 3)), 0, 1, r"give \[R, C, H, W, 3\]"),
        (np.zeros((1, 1, 4, 4, 4)), 1, 1, "H, W, 3"),
        (np.zeros((1, 2, 4, 4, 3)), 1, 1, "1 row titles and 1 column titles for 1 rows and 2 col"),
        (np.zeros((2, 1, 4, 4, 3)), 1, 1, "1 row titles .* for 2 rows"),
        (np.full((1, 1, 4, 4, 3), -1.0), 1, 1, r"values -1\.\.-1: .* in \[0, 1\]"),
        (np.full((1, 1, 4, 4, 3), np.nan), 1, 1, "NaN"),
        (np.zeros((300, 1, 4, 4, 3)), 300, 1, "at most 65535 each way: draw fewer cells"),
    ],
)
def test_a_grid_that_cannot_be_drawn_is_refused(tmp_path, cells, rows, columns, message):
    with pytest.raises(ImageError, match=message):
        draw_grid(tmp_path / "grid.png", cells, ["r"] * rows, ["c"] * columns)
    assert not list(tmp_path.iterdir())


def test_pyplot_is_not_imported():
    code = "import sys, jax_excite.pictures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
