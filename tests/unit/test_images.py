import contextlib
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jax_excite.data.images import check_images, load_image, load_images, to_uint8
from jax_excite.errors import ImageError


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def encoded(image: Image.Image, suffix: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, suffix, **options)
    return buffer.getvalue()


# load_image


def test_a_square_image_of_the_wanted_size_keeps_its_pixels(tmp_path):
    pixels = noise(8, 8)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    wanted = pixels.astype(np.float64) / 127.5 - 1
    for source in (path, str(path), Image.fromarray(pixels), pixels):
        x = load_image(source, size=8)
        assert x.dtype == np.float32
        np.testing.assert_allclose(x, wanted, rtol=0, atol=1e-6)
    assert load_image(np.full((4, 4, 3), 255, np.uint8)).shape == (224, 224, 3)


def test_black_is_minus_one_and_white_one_exactly():
    assert (load_image(np.zeros((3, 3, 3), np.uint8), 5) == -1).all()
    assert (load_image(np.full((3, 5, 3), 255, np.uint8), 5) == 1).all()


def test_square_is_not_cropped_and_the_rest_is():
    framed = np.zeros((70, 70, 3), np.uint8)
    framed[1:-1, 1:-1] = 255
    assert load_image(framed, 70)[0].max() == -1
    wide = np.zeros((70, 140, 3), np.uint8)
    wide[3:-3, 38:-38] = 255
    assert load_image(wide, 56).min() == 1  # the short side becomes 64, the crop takes 4 off it


def test_the_short_side_before_the_crop():
    wide = np.zeros((60, 120, 3), np.uint8)
    wide[5:-5, 35:-35] = 255
    assert load_image(wide, 50, resize=60).min() == 1  # the crop takes 5 off the short side
    assert load_image(wide, 50).min() == -1  # 57 before the crop, which takes less off
    np.testing.assert_array_equal(load_image(wide, 56), load_image(wide, 56, resize=64))
    np.testing.assert_array_equal(
        load_images([wide], 50, resize=60)[0], load_image(wide, 50, resize=60)
    )
    square = noise(60, 60)
    np.testing.assert_array_equal(load_image(square, 50, resize=60), load_image(square, 50))
    with pytest.raises(ImageError, match="resize is 49: give at least as many pixels as size, 50"):
        load_image(wide, 50, resize=49)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_other_modes_become_rgb(tmp_path, mode):
    image = Image.fromarray(noise(6, 6)).convert(mode)
    path = tmp_path / "image.tiff"
    image.save(path)
    wanted = np.asarray(image.convert("RGB"))
    for source in (image, path):
        np.testing.assert_array_equal(to_uint8(load_image(source, 6)), wanted)


def test_a_palette_with_transparency_raises_no_warning(tmp_path):
    image = Image.fromarray(noise(6, 6)).quantize(8)
    image.save(tmp_path / "a.png", transparency=bytes([0, 128] * 4))
    wanted = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(to_uint8(load_image(tmp_path / "a.png", 6)), wanted)


@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, 3), (8, 1)])
def test_exif_orientation_is_applied(tmp_path, orientation, turns):
    pixels = noise(6, 6)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    x = load_image(tmp_path / "a.png", 6)
    np.testing.assert_array_equal(to_uint8(x), np.rot90(pixels, turns))


def test_a_missing_file_is_not_an_image_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        load_image(tmp_path / "nowhere.png")


PNG = encoded(Image.fromarray(noise(40, 30)), "PNG")
JPEG = encoded(Image.fromarray(noise(40, 30)), "JPEG")


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", PNG[:9], PNG[: len(PNG) // 2], JPEG[: len(JPEG) // 2], JPEG[:3], PNG[::-1]],
    ids=["empty", "text", "header", "half png", "half jpeg", "start of jpeg", "reversed"],
)
def test_a_file_that_is_no_whole_image_is_refused(tmp_path, content):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"broken\.png cannot be read as an image .*PNG"):
        load_image(path)


def test_damaged_images_are_read_or_refused(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "damaged"
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(noise(9, 7))
    outcomes = {"read": 0, "refused": 0}
    for suffix in ("PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP"):
        whole = encoded(image, suffix, exif=exif)
        for _ in range(60):
            content = bytearray(whole)
            content[rng.integers(min(len(content), 200))] = rng.integers(256)
            path.write_bytes(content)
            try:
                assert load_image(path, 4).shape == (4, 4, 3)
                outcomes["read"] += 1
            except ImageError:
                outcomes["refused"] += 1
    assert min(outcomes.values()) > 20


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    path.write_bytes(PNG)
    for limit in (1000, 100):  # Pillow itself warns of the first and refuses the second
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ImageError, match=rf"bomb\.png.*bomb.*at most {limit} pixels"):
            load_image(path)


def test_an_image_that_resizing_would_blow_up_is_refused():
    with pytest.raises(ImageError, match="256 x 25600000 when its short side"):
        load_image(np.zeros((1, 100000, 3), np.uint8))


def test_a_directory_is_refused(tmp_path):
    with pytest.raises(ImageError, match="is a directory: give an image file"):
        load_image(tmp_path)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
    ],
)
def test_a_wrong_array_is_refused(array):
    with pytest.raises(ImageError, match=r"shape \(.*and dtype .*: give uint8 \[H, W, 3\]"):
        load_image(array)


def test_other_sources_are_refused():
    with pytest.raises(ImageError, match="of type list: give a path, a PIL image or a uint8"):
        load_image([[0, 0, 0]])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ImageError, match=r"mode I;16: .* 8-bit"):
        load_image(Image.fromarray(np.zeros((4, 4), np.uint16)))
    with pytest.raises(ImageError, match="size is 0"):
        load_image(noise(4, 4), size=0)


def test_load_images_stacks_what_load_image_gives(tmp_path):
    Image.fromarray(noise(9, 6)).save(tmp_path / "a.png")
    sources = [tmp_path / "a.png", noise(5, 5)]
    x = load_images(sources, size=7)
    assert x.shape == (2, 7, 7, 3)
    for image, source in zip(x, sources, strict=True):
        np.testing.assert_array_equal(image, load_image(source, 7))


def test_load_images_wants_a_sequence():
    with pytest.raises(ImageError, match=r"a\.png is one path"):
        load_images("a.png")
    with pytest.raises(ImageError, match="give at least one"):
        load_images([])


# check_images

ARRAYS = [np.asarray, jnp.asarray]


def ramp(dtype=np.float32):
    return np.linspace(-1, 1, 2 * 3 * 4 * 3).reshape(2, 3, 4, 3).astype(dtype)


@pytest.mark.parametrize("array", ARRAYS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16])
def test_images_are_accepted(array, dtype):
    x = array(ramp(dtype))
    check_images(x)
    check_images(x[0])
    check_images(x * 50, bounds=None)
    check_images(x * 50, bounds=(-50, 50))


@pytest.mark.parametrize("array", ARRAYS)
def test_bounds_leave_room_for_rounding_only(array):
    check_images(array(ramp() * np.float32(1 + 5e-7)))
    with pytest.raises(ImageError, match=r"values -1\.\d*\.\.1\.?\d*: .* in \[-1, 1\]"):
        check_images(array(ramp() * np.float32(1 + 4e-6)))


@pytest.mark.parametrize("array", ARRAYS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("bounds", [(-1, 1), None])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_what_is_not_finite_is_refused_wherever_it_is(array, bad, bounds, dtype):
    for position in (0, 17, -1):
        x = ramp(dtype)
        x.reshape(-1)[position] = bad
        with pytest.raises(ImageError, match="holds NaN or infinity"):
            check_images(array(x), bounds)


@pytest.mark.parametrize("array", ARRAYS)
def test_0_to_255_gets_a_hint(array):
    with pytest.raises(ImageError, match=r"values 0\.\.255: .*\[-1, 1\].*load_image"):
        check_images(array((ramp() + 1) * 127.5))
    with pytest.raises(ImageError, match=r"dtype uint8: .*load_image"):
        check_images(array(noise(4, 4)))


@pytest.mark.parametrize("array", ARRAYS)
@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 3, 4, 5)])
def test_channels_first_gets_a_hint(array, shape):
    with pytest.raises(ImageError, match=r"\[N, H, W, 3\].*moveaxis\(x, -3, -1\)"):
        check_images(array(np.zeros(shape, np.float32)), channels=3)


@pytest.mark.parametrize(
    "shape", [(4, 3), (3,), (), (1, 1, 4, 4, 3), (4, 4, 1), (4, 4, 4), (0, 4, 4, 3), (0, 4, 3)]
)
def test_a_wrong_shape_is_refused(shape):
    with pytest.raises(ImageError, match=r"shape \(.*float arrays \[H, W, 3\] or \[N, H, W, 3\]"):
        check_images(np.zeros(shape, np.float32), channels=3)
    fits_any = len(shape) in (3, 4) and 0 not in shape
    with contextlib.nullcontext() if fits_any else pytest.raises(ImageError, match="W, C"):
        check_images(np.zeros(shape, np.float32))


@pytest.mark.parametrize("x", [[[[0.0] * 3]], None, 1.0])
def test_what_is_no_array_is_refused(x):
    with pytest.raises(ImageError, match="of type"):
        check_images(x)


def test_other_dtypes_are_refused():
    for dtype in (np.int32, np.complex64, np.bool_):
        with pytest.raises(ImageError, match=r"dtype .*float arrays"):
            check_images(np.zeros((4, 4, 3), dtype))


def test_of_a_traced_array_only_shape_and_dtype_are_checked():
    def checked(x):
        check_images(x)
        return x

    jax.jit(checked)(jnp.full((4, 4, 3), jnp.nan))
    jax.vmap(checked)(jnp.full((2, 4, 4, 3), 255.0))
    with pytest.raises(ImageError, match="shape"):
        jax.jit(checked)(jnp.zeros((4, 4)))
    with pytest.raises(ImageError, match="dtype"):
        jax.jit(checked)(jnp.zeros((4, 4, 3), int))


def test_a_constant_is_checked_while_another_function_is_traced():
    good, bad = jnp.zeros((4, 4, 3)), jnp.full((4, 4, 3), 2.0)

    def with_constant(constant):
        def traced(y):
            check_images(constant)
            return y + constant

        return jax.jit(traced)(jnp.ones(()))

    assert with_constant(good).shape == good.shape
    with pytest.raises(ImageError, match=r"values 2\.\.2"):
        with_constant(bad)


# to_uint8


def test_to_uint8_inverts_load_image_for_every_byte():
    pixels = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(16, 16, 3)
    x = load_image(pixels, 16)
    np.testing.assert_array_equal(to_uint8(x), pixels)
    np.testing.assert_array_equal(to_uint8(jnp.asarray(x)[None]), pixels[None])


def test_to_uint8_clips_to_its_bounds():
    x = np.array([[[-0.5, 0.0, 0.25], [0.5, 1.0, 1.5]]])
    assert to_uint8(x, bounds=(0, 1)).tolist() == [[[0, 0, 64], [128, 255, 255]]]
    with pytest.raises(ImageError, match="NaN"):
        to_uint8(x * np.nan)
