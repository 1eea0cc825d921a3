"""Decoding: every odd file of the reference data, and fast paths that change no pixel."""

from __future__ import annotations

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from PIL import EpsImagePlugin, IcoImagePlugin, Image, ImageFile

from setr.errors import SetrError
from setr.images import check_whole, encode_png, from_pillow, read_image
from setr.reading import decode
from setr.reading.decode import check_png_rows
from setr.reading.lazy_image import LazyImage
from setr.reading.masks import read_mask
from setr.reading.pillow import ImageTooLargeError, opened

UNREADABLE = {
    "truncated.jpg": "truncated",
    "truncated.png": "truncated",
    "zero_byte.jpg": "empty",
    "text_renamed.jpg": "not an image",
    "bomb_400Mpx.png": "raise --max-pixels to predict it, or cut it into tiles to train",
}


@pytest.fixture(params=["kornia", "without"])
def decoder(request, monkeypatch):
    """Both with kornia-rs and without it."""
    if request.param == "without":
        monkeypatch.setattr(decode, "_decode_png", None)
    elif decode._decode_png is None:
        pytest.skip("kornia-rs is not installed")


def encoded(array: np.ndarray, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format, **options)
    return buffer.getvalue()


def photo(height: int = 37, width: int = 53) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("name", UNREADABLE)
@pytest.mark.usefixtures("decoder")
def test_unreadable_images_are_refused_with_the_reason(shared, name):
    path = shared / "data" / "odd_inputs" / "images" / name
    for read in (read_image, check_whole):
        with pytest.raises(SetrError, match=UNREADABLE[name]) as caught:
            read(path)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("decoder")
def test_readable_images_equal_pillow(shared):
    """Apart from the kinds whose rule differs from Pillow's on purpose."""
    special = {"gray16.png", "rgba.png", "8000x6000.jpg", *UNREADABLE}
    special |= {"exif_orientation_3.jpg", "exif_orientation_6.jpg"}
    paths = sorted((shared / "data" / "odd_inputs" / "images").iterdir())
    for path in (p for p in paths if p.name not in special):
        with Image.open(path) as image:
            expected = np.asarray(image.convert("RGB"))
        np.testing.assert_array_equal(read_image(path), expected, err_msg=path.name)
        assert check_whole(path) == (expected.shape[:2], False)


def test_16_bit_is_scaled_not_clipped():
    ramp = np.arange(0, 65536, 257, dtype=np.uint16)[None]
    np.testing.assert_array_equal(read_image(encode_png(ramp))[0, :, 0], np.arange(256))


def test_alpha_is_dropped():
    pixels = np.dstack((photo(), np.full((37, 53), 9, np.uint8)))
    np.testing.assert_array_equal(read_image(encoded(pixels, "PNG")), pixels[..., :3])


@pytest.mark.parametrize("turn", [3, 6])
def test_exif_rotation_is_applied(turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    upright = photo()
    jpeg = encoded(upright, "JPEG", quality=95, exif=exif)
    plain = read_image(encoded(upright, "JPEG", quality=95))
    expected = plain[::-1, ::-1] if turn == 3 else np.rot90(plain, -1)
    np.testing.assert_array_equal(read_image(jpeg), expected)
    assert check_whole(jpeg) == (expected.shape[:2], True)


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_a_cut_file_is_never_half_an_image(format, share):
    data = encoded(photo(80, 90), format)
    for read in (read_image, check_whole):
        with pytest.raises(SetrError):
            read(data[: int(len(data) * share)])


@pytest.mark.usefixtures("decoder")
def test_a_damaged_png_is_refused():
    data = bytearray(encoded(photo(80, 90), "PNG"))
    data[len(data) // 2] ^= 0x55
    with pytest.raises(SetrError, match="broken image file"):
        read_image(bytes(data))


def test_a_tiff_file_with_a_nonsensical_tag_is_refused():
    """Its places of pixels are fractions, at which Pillow raises a TypeError."""
    buffer = io.BytesIO()
    Image.new("RGB", (9, 7)).save(buffer, "TIFF")
    data = bytearray(buffer.getvalue())
    place = data.index((273).to_bytes(2, "little"))  # the tag StripOffsets
    data[place + 2] = 12  # the type double
    for read in (read_image, read_mask):
        with pytest.raises(SetrError, match="image data: broken image file"):
            read(bytes(data))


@pytest.mark.parametrize("kind", [EOFError, OSError])
def test_an_error_without_words_is_called_by_its_kind(monkeypatch, kind):
    def fail(*_, **__):
        raise kind

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(SetrError, match=rf"broken image file \({kind.__name__}\)"):
        read_image(b"anything")


@pytest.mark.parametrize(("kind", "name"), [(np.float32, "float"), (np.int32, "integer")])
def test_pixels_without_a_known_range_are_refused(tmp_path, kind, name):
    """A float image from 0 to 1 would otherwise be black."""
    path = tmp_path / "values.tif"
    Image.fromarray(np.ones((4, 5), kind)).save(path)
    message = rf"values.tif: 32-bit {name} pixels.*8 or 16 bits"
    for read in (read_image, check_whole):
        with pytest.raises(SetrError, match=message):
            read(path)
    with pytest.raises(SetrError, match=f"32-bit {name} pixels"):
        from_pillow(Image.fromarray(np.ones((4, 5), kind)))


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "I;16", "RGBA"])
def test_a_png_with_fewer_rows_than_its_header_promises_is_refused(mode):
    """Pillow would leave the rest black, without a word."""
    image = Image.fromarray(photo())
    image = Image.new(mode, (53, 37), 1) if mode == "I;16" else image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    assert read_image(bytes(data)).shape == (37, 53, 3)
    data[20:24] = (90).to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    with pytest.raises(SetrError, match="less than its header promises"):
        read_image(bytes(data))
    if mode not in ("RGB", "RGBA"):
        with pytest.raises(SetrError, match="less than its header promises"):
            read_mask(bytes(data))


def test_black_and_interlaced_pngs_are_read():
    black = np.zeros((37, 53), np.uint8)
    np.testing.assert_array_equal(read_mask(encode_png(black.astype(np.uint16))), black)
    # 3 x 2 grey pixels 10..60 in the passes of Adam7, which Pillow reads and cannot write
    rows = [[10], [20], [30], [40, 50, 60]]
    passes = b"".join(bytes([0, *row]) for row in rows)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
        )

    def file(inflated: bytes) -> bytes:
        header = (3).to_bytes(4, "big") + (2).to_bytes(4, "big") + bytes([8, 0, 0, 0, 1])
        parts = (b"IHDR", header), (b"IDAT", zlib.compress(inflated)), (b"IEND", b"")
        return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)

    assert check_png_rows(Image.open(io.BytesIO(file(passes))), file(passes)) is None
    assert read_image(file(passes)).shape == (2, 3, 3)
    with pytest.raises(OSError, match="4 bytes less"):
        check_png_rows(Image.open(io.BytesIO(file(passes[:-4]))), file(passes[:-4]))


@pytest.mark.usefixtures("decoder")
def test_trailing_bytes_do_no_harm():
    for format in ("PNG", "JPEG"):
        data = encoded(photo(), format)
        np.testing.assert_array_equal(read_image(data + b"\0" * 9000), read_image(data))
        assert check_whole(data + b"x" * 9000) == ((37, 53), False)


def test_a_file_is_refused_by_size_from_its_header():
    with pytest.raises(SetrError, match=r"53x37 is 1,961 pixels.* or cut it into tiles"):
        read_image(encoded(photo(), "PNG"), max_pixels=1000)


def header_of(side: int) -> bytes:
    """The first bytes of a PNG file of so many pixels squared; the pixels themselves lack."""
    size = side.to_bytes(4, "big") * 2
    kinds = (b"IHDR", size + b"\x08\x00\x00\x00\x00"), (b"IDAT", b"")
    chunks = [len(d).to_bytes(4, "big") + k + d + zlib.crc32(k + d).to_bytes(4, "big")
              for k, d in kinds]  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_a_raised_limit_is_the_only_one(monkeypatch):
    """Pillow by itself refuses more than 178,956,970 pixels, whatever the limit."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    data = header_of(20_000)
    with pytest.raises(ImageTooLargeError, match="raise --max-pixels"):
        read_image(data)
    with ThreadPoolExecutor(4) as threads:
        limits = [400_000_000, 300_000_000] * 20
        for limit, size in zip(limits, threads.map(partial(size_of, data), limits), strict=True):
            assert size == ((20_000, 20_000) if limit == 400_000_000 else None)
    with pytest.raises(ImageTooLargeError, match="20000x20000 is 400,000,000 pixels"):
        read_image(data, max_pixels=300_000_000)
    with pytest.raises(ImageTooLargeError, match="raise --max-pixels"):
        read_image(data)


def size_of(data: bytes, max_pixels: int) -> tuple[int, int] | None:
    try:
        with opened(data, max_pixels) as image:
            return image.size
    except ImageTooLargeError:
        return None


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette_masks_give_indices(bits):
    ids = np.random.default_rng(0).integers(0, 2**bits, (20, 30), np.uint8)
    image = Image.fromarray(ids, "P")
    image.putpalette(np.random.default_rng(1).integers(0, 256, 768, np.uint8).tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", bits=bits)
    np.testing.assert_array_equal(read_mask(buffer.getvalue()), ids)


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("index.png", "index.png"),
        ("palette.png", "index.png"),
        ("index16.png", "index.png"),
        ("rgb_gray_triplet.png", "index.png"),
    ],
)
def test_good_masks_are_the_index_mask(shared, name, expected):
    masks = shared / "data" / "odd_inputs" / "masks"
    with Image.open(masks / expected) as image:
        np.testing.assert_array_equal(read_mask(masks / name), np.asarray(image))


def test_bad_masks_are_refused(shared):
    masks = shared / "data" / "odd_inputs" / "masks"
    with pytest.raises(SetrError, match="JPEG compression has changed the ids"):
        read_mask(masks / "lossy.jpg")
    with pytest.raises(SetrError, match="colour_map"):
        read_mask(masks / "rgb_colour.png")
    with pytest.raises(SetrError, match="one id per pixel"):
        read_mask(masks / "index.png", rgb=True)


def test_grey_masks_with_transparency_are_ids_and_fractions_are_none(tmp_path):
    ids = np.array([[0, 7], [255, 3]], np.uint8)
    Image.fromarray(np.stack([ids, ids[::-1]], axis=2), "LA").save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), ids)
    Image.fromarray(ids.astype(np.float32)).save(tmp_path / "b.tif")
    with pytest.raises(SetrError, match="contains float32 values"):
        read_mask(tmp_path / "b.tif")


def test_a_tiff_mask_that_pillow_does_not_know_is_told_what_ids_are(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    shape = {"height": 4, "width": 4, "count": 1, "dtype": "int64"}
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", **shape) as file:
        file.write(np.zeros((1, 4, 4), np.int64))
    with pytest.raises(SetrError, match=r"64-bit numbers .* save one id per pixel"):
        read_mask(tmp_path / "a.tif")


def test_matlab_labels(shared, tmp_path):
    pytest.importorskip("scipy")
    folder = shared / "data" / "samples" / "pascal_context" / "trainval_mat_rebuilt"
    ids = read_mask(folder / "2008_008376.mat")
    assert ids.dtype == np.uint16
    assert ids.shape == (333, 500)
    (tmp_path / "cut.mat").write_bytes((folder / "2008_008376.mat").read_bytes()[:500])
    with pytest.raises(SetrError, match=r"cut\.mat"):
        read_mask(tmp_path / "cut.mat")
    with pytest.raises(SetrError, match="no such file"):
        read_mask(tmp_path / "none.mat")


def test_links_that_lead_nowhere_are_named(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "b.png")
    with pytest.raises(SetrError, match=r"a\.png: a link that leads nowhere"):
        read_image(tmp_path / "a.png")
    with pytest.raises(SetrError, match=r"b\.png: a link that leads to itself"):
        read_image(tmp_path / "b.png")


def test_a_file_without_permission_is_named(tmp_path, monkeypatch):
    """Root reads every file, so the system's refusal is acted."""

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.png").touch()
    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(SetrError, match=r"a\.png: permission denied"):
        read_image(tmp_path / "a.png")


def plain_png(**options):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", **options)
    return pixels, buffer.getvalue()


@pytest.mark.usefixtures("decoder")
def test_rows_are_those_of_the_whole_image(tmp_path):
    pixels, data = plain_png()
    path = tmp_path / "a.png"
    path.write_bytes(data)
    for source in (path, data):
        rows = LazyImage(source)
        assert rows.shape == (40, 50, 3)
        for stop in (1, 17, 40, 99):
            np.testing.assert_array_equal(rows[:stop], pixels[:stop])
        np.testing.assert_array_equal(rows[:], pixels)
        np.testing.assert_array_equal(rows[3:17, 5:9], pixels[3:17, 5:9])


@pytest.mark.usefixtures("decoder")
def test_rows_below_those_asked_for_are_not_decoded():
    pixels, data = plain_png(compress_level=0)
    broken = bytearray(data)
    broken[-60:-20] = bytes(40)  # inside the last rows
    rows = LazyImage(bytes(broken))
    np.testing.assert_array_equal(rows[:20], pixels[:20])
    with pytest.raises(SetrError, match="broken image file"):
        rows[:]


@pytest.mark.parametrize(
    ("name", "problem"),
    [("missing.png", "no such file"), ("empty.png", "0 bytes"), ("text.png", "not an image")],
)
def test_rows_of_a_bad_file_name_it(tmp_path, name, problem):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_bytes(b"hello")
    with pytest.raises(SetrError, match=problem) as caught:
        LazyImage(tmp_path / name)
    assert name in str(caught.value)


def test_rows_of_other_files_are_decoded_whole(tmp_path):
    pixels, _ = plain_png()
    for suffix, options in ((".jpg", {}), (".bmp", {}), (".tif", {})):
        path = tmp_path / f"a{suffix}"
        Image.fromarray(pixels).save(path, **options)
        np.testing.assert_array_equal(LazyImage(path)[:13], read_image(path)[:13])


def test_masks_of_one_bit_are_ids_and_ids_that_do_not_fit_are_refused():
    ids = np.random.default_rng(0).integers(0, 2, (9, 13)).astype(bool)
    np.testing.assert_array_equal(read_mask(encoded(ids, "PNG")), ids)
    for value in (70_000, -1):  # as 16 bit: 4464 and 65535
        wide = encoded(np.full((4, 5), value, np.int32), "TIFF")
        with pytest.raises(SetrError, match=r"exceed 0\.\.65535"):
            read_mask(wide)
    np.testing.assert_array_equal(
        read_mask(encoded(np.full((4, 5), 40_000, np.int32), "TIFF")), 40_000
    )


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("size", [100, 6000])
def test_exif_rotation_of_a_png_is_found_behind_other_metadata(tmp_path, size):
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = photo()
    data = encoded(upright, "PNG", exif=exif, icc_profile=bytes(size))
    (tmp_path / "a.png").write_bytes(data)
    expected = np.rot90(upright, -1)
    np.testing.assert_array_equal(read_image(data), expected)
    assert check_whole(data) == (expected.shape[:2], True)
    rows = LazyImage(tmp_path / "a.png")
    np.testing.assert_array_equal(rows[3:9, 2:11], expected[3:9, 2:11])


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("format", ["TIFF", "PNG", "JPEG"])
def test_a_checked_size_is_that_of_the_image_that_is_read(format, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    data = encoded(photo(), format, exif=exif)
    assert check_whole(data)[0] == read_image(data).shape[:2]


@pytest.mark.usefixtures("decoder")
def test_of_an_animated_png_the_first_frame_is_cut(tmp_path):
    frames = [photo(), photo()[::-1]]
    first, second = (Image.fromarray(frame) for frame in frames)
    first.save(tmp_path / "a.png", save_all=True, append_images=[second])
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), frames[0])
    rows = LazyImage(tmp_path / "a.png")
    np.testing.assert_array_equal(rows[20:31, 2:11], frames[0][20:31, 2:11])


def wrapped_by_iptc(inner: bytes) -> bytes:
    """An IPTC file of 9x7 pixels, whose content may be of any format."""

    def field(group: int, number: int, value: bytes) -> bytes:
        return bytes((0x1C, group, number)) + len(value).to_bytes(2, "big") + value

    head = field(3, 60, b"\1\0") + field(3, 65, b"\0") + field(3, 20, (9).to_bytes(2, "big"))
    head += field(3, 30, (7).to_bytes(2, "big")) + field(3, 120, b"\5")
    parts = [inner[i : i + 30_000] for i in range(0, len(inner), 30_000)]
    return head + b"".join(field(8, 10, part) for part in parts)


@pytest.mark.parametrize("wrap", [bytes, wrapped_by_iptc])
def test_no_file_starts_another_program(wrap, monkeypatch):
    """Pillow draws EPS with Ghostscript, which runs the PostScript in it."""
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: started.append(a))
    data = wrap(encoded(photo(), "EPS"))
    for read in (read_image, check_whole, read_mask):
        with pytest.raises(SetrError, match=r"EPS files are not read; save it as PNG|not an image"):
            read(data)
    assert not started


def test_icons_are_refused_before_they_are_decoded(monkeypatch):
    """Pillow decodes them to know their size, which may be above the limit."""
    decoded = []
    monkeypatch.setattr(IcoImagePlugin.IcoFile, "getimage", lambda *a: decoded.append(a))
    with pytest.raises(SetrError, match="image data: ICO files are not read; save it as PNG"):
        check_whole(encoded(photo(), "ICO"), max_pixels=10)
    assert not decoded


def in_one_tile(side: int) -> bytes:
    """A TIFF of 16x16 pixels in one tile of black."""
    tile = zlib.compress(bytes(side * side * 3))
    entries = {256: 16, 257: 16, 258: 8, 259: 8, 262: 2, 277: 3}
    entries |= {322: side, 323: side, 324: 8, 325: len(tile)}
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, entries[tag]) for tag in sorted(entries))
    tile += bytes(len(tile) % 2)
    head = b"II*\0" + struct.pack("<I", 8 + len(tile)) + tile
    return head + struct.pack("<H", len(entries)) + directory + bytes(4)


def test_a_tile_counts_as_what_it_unpacks_to():
    data = in_one_tile(2048)
    assert read_image(data).shape == (16, 16, 3)
    for read in (read_image, check_whole):
        with pytest.raises(ImageTooLargeError, match="a tile of 2048x2048 is 4,194,304 pixels"):
            read(data, max_pixels=1_000_000)


def with_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan, of a few bytes, is repeated."""
    data = encoded(np.full((64, 64, 3), 90, np.uint8), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + scan * (count - data.count(b"\xff\xda")) + data[-2:]


def test_a_jpeg_that_would_take_hours_is_refused(tmp_path):
    """Each of its scans, of a dozen bytes, costs as much time as a whole image."""
    assert read_image(with_scans(100)).shape == (64, 64, 3)
    (tmp_path / "a.jpg").write_bytes(with_scans(101))
    for source in (with_scans(101), tmp_path / "a.jpg"):
        for read in (read_image, check_whole):
            with pytest.raises(SetrError, match="more than 100 scans; save it again as a plain"):
                read(source)


def test_pictures_for_two_eyes_are_no_way_round():
    """MPO is JPEG with an index of several pictures."""
    buffer = io.BytesIO()
    pictures = [Image.fromarray(np.full((64, 64, 3), 90, np.uint8)) for _ in range(2)]
    pictures[0].save(buffer, "MPO", save_all=True, append_images=pictures[1:], progressive=True)
    data = buffer.getvalue()
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "MPO"
        assert "progressive" in image.info
    assert read_image(data).shape == (64, 64, 3)
    first = data.index(b"\xff\xd9")
    scan = data[data.rindex(b"\xff\xda", 0, first) : first]
    with pytest.raises(SetrError, match="more than 100 scans"):
        read_image(data[:first] + 100 * scan + data[first:])


def test_markers_in_other_segments_are_no_scans():
    comment = b"\xff\xda" * 500
    data = encoded(photo(), "JPEG", progressive=True, comment=comment, quality=95)
    assert read_image(data).shape == (37, 53, 3)
    assert read_image(data + comment + b"\xff\xd9").shape == (37, 53, 3)


def test_formats_that_python_decodes_by_the_pixel_are_refused(tmp_path):
    """A second for each megapixel, in which the process does nothing else."""
    head = b"qoif" + (4).to_bytes(4, "big") * 2 + b"\3\0"
    (tmp_path / "a.png").write_bytes(head + b"\xfd" + bytes(7) + b"\1")
    with pytest.raises(SetrError, match=r"a\.png: QOI files are not read; save it as PNG"):
        read_image(tmp_path / "a.png")


def test_a_format_of_the_users_own_plugin_is_read():
    """As pillow_heif adds HEIF."""

    class Own(ImageFile.ImageFile):
        format = "OWN"

        def _open(self) -> None:
            self._mode, self._size = "L", (2, 1)
            self.tile = [ImageFile._Tile("raw", (0, 0, 2, 1), 4, "L")]

    Image.register_open("OWN", Own, lambda prefix: prefix.startswith(b"OWN!"))
    try:
        assert read_image(b"OWN!\x07\x09").tolist() == [[[7] * 3, [9] * 3]]
    finally:
        Image.ID.remove("OWN")
        del Image.OPEN["OWN"]
