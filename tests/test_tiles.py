"""Large images cut into tiles, with splits that share no ground (`setr init-data --tile`)."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from setr.cli import main
from setr.data import tile_files, tile_folder
from setr.data.tile_draft import Tile, divide_tiles, windows
from setr.datasets import open_dataset
from setr.errors import DATA_CHECK_FAILED, FAILED, OK, USAGE, SetrError
from setr.init_data import draft, write
from setr.outlines import rendering
from setr.outlines.drawing import Ring, Rules, Runs, Shape, draw
from setr.outlines.rendering import WindowMask
from setr.reading.masks import read_mask
from tests.conftest import refusal

from .test_outlines import put, square
from .test_outlines_geojson import feature, layer

rasterio = pytest.importorskip("rasterio", reason='needs the extra: pip install "setr[geo]"')
SIZE, SIDE, METRES = (200, 330), 64, 2.0
LEFT, TOP = 500_000.0, 5_400_000.0


def scene(
    path: Path, east: float = 0.0, seed: int = 0, size: tuple[int, int] = SIZE, **more: Any
) -> np.ndarray:
    """A GeoTIFF with four bands of 16 bits, `east` metres east of the first; its values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(100, 3000, (4, *size)).astype(np.uint16)
    place = rasterio.Affine(METRES, 0, LEFT + east, 0, -METRES, TOP)
    kind: dict[str, Any] = {"crs": "EPSG:32633", "transform": place, "dtype": "uint16", **more}
    options = {"driver": "GTiff", "height": size[0], "width": size[1], "count": 4}
    with rasterio.open(path, "w", **options, **kind) as file:
        file.write(values)
        file.descriptions = ("blue", "green", "red", "near infrared")
    return values


def mask_of(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"driver": "GTiff", "height": values.shape[0], "width": values.shape[1], "count": 1}
    with rasterio.open(path, "w", dtype=values.dtype.name, **options) as file:
        file.write(values, 1)


def ids(size: tuple[int, int] = SIZE, seed: int = 5) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 3, (size[0] // 10, size[1] // 10))
    return coarse.repeat(10, axis=0).repeat(10, axis=1).astype(np.uint8)


def table(root: Path) -> list[dict[str, str]]:
    with (root / "tiles" / "tiles.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def window_of(row: dict[str, str]) -> tuple[slice, slice]:
    top, left, height, width = (int(row[key]) for key in ("row", "column", "height", "width"))
    return slice(top, top + height), slice(left, left + width)


def test_tiles_keep_bands_values_and_place(tmp_path):
    values = scene(tmp_path / "images" / "a.tif", nodata=0)
    labels = ids()
    mask_of(tmp_path / "masks" / "a.tif", labels)
    assert main(["init-data", str(tmp_path), "--tile", str(SIDE)]) == OK
    rows = table(tmp_path)
    seen = np.zeros(SIZE, int)
    for row in rows:
        place = window_of(row)
        seen[place] += 1
        image = tmp_path / "tiles" / "images" / row["tile"]
        with rasterio.open(image) as file:
            assert max(file.shape) <= SIDE
            assert (file.crs, file.nodata, file.dtypes) == ("EPSG:32633", 0, ("uint16",) * 4)
            assert file.descriptions[3] == "near infrared"
            assert file.compression.value.lower() == "deflate"
            top, left = (part.start * METRES for part in place)
            assert (file.transform.c, file.transform.f) == (LEFT + left, TOP - top)
            np.testing.assert_array_equal(file.read(), values[:, place[0], place[1]])
        mask = read_mask(tmp_path / "tiles" / "labels" / row["tile"])
        np.testing.assert_array_equal(mask, labels[place])
    assert (seen == 1).all()  # no overlap, nothing left out
    for split in ("train", "val"):
        dataset = open_dataset(str(tmp_path), split)
        assert len(dataset) == sum(row["split"] == split for row in rows) > 0
        assert dataset.bands.numbers == (1, 2, 3, 4)
    assert main(["doctor", str(tmp_path), "--quick"]) == OK


def test_outlines_are_cut_as_they_are_drawn(tmp_path, monkeypatch):
    """Tiles of drawn masks are parts of the whole mask, also where that is too large to draw."""
    from setr.prediction.ground import Georeference

    shapes = [("house", 10, 10, 90), ("pond", 50, 40, 30), ("house", 190, 100, 66)]
    for folder in ("whole", "cut", "large"):
        scene(tmp_path / folder / "a.tif")
        geo = Georeference("EPSG:32633", (METRES, 0, LEFT, 0, -METRES, TOP))
        areas = [
            feature(square(x, y, side), geo, "OGC:CRS84", name=kind) for kind, x, y, side in shapes
        ]
        put(tmp_path / folder / "x.geojson", layer(*areas))
    draft(tmp_path / "whole")
    whole = read_mask(tmp_path / "whole" / "masks_drawn" / "a.png")
    write(tmp_path / "cut", draft(tmp_path / "cut", tile=SIDE))
    monkeypatch.setattr(rendering, "MAX_PIXELS", 1000)
    write(tmp_path / "large", draft(tmp_path / "large", tile=SIDE))
    for folder in ("cut", "large"):
        assert not (tmp_path / folder / "masks_drawn").exists()
        rows = table(tmp_path / folder)
        assert len(rows) == len(windows(SIZE, SIDE))
        for row in rows:
            mask = read_mask(tmp_path / folder / "tiles" / "labels" / row["tile"])
            np.testing.assert_array_equal(mask, whole[window_of(row)])
        classes = open_dataset(str(tmp_path / folder), "train").labels.classes
        assert classes == ("house", "pond", "background")


@pytest.mark.parametrize("largest_first", [False, True])
def test_windows_of_a_mask_are_parts_of_it(largest_first):
    rng, size = np.random.default_rng(3), (90, 120)
    shapes = []
    for number in range(12):
        points = rng.uniform(-20, 130, (5, 2))
        hole = points.mean(axis=0) + (points - points.mean(axis=0)) / 3
        relative = number % 3 == 0
        lines = [line / size[::-1] if relative else line for line in (points, hole)]
        shapes.append(Shape("ab"[number % 2], (Ring(lines[0], relative, (lines[1],)),)))
    rules = Rules({"a": 0, "b": 1}, 2, largest_first)
    whole, drawn = draw(shapes, size, rules).mask, WindowMask(shapes, size, rules)
    for rows, columns in windows(size, 32):
        place = slice(*rows), slice(*columns)
        np.testing.assert_array_equal(drawn[place], whole[place])
    runs = Shape("a", (Runs(size, np.array([90 * 120])),))
    with pytest.raises(SetrError, match="only polygons are drawn, not masks or run lengths"):
        WindowMask([runs], size, rules)


def test_neighbouring_images_of_a_layer_agree_on_what_covers_what():
    """The field is the larger one, though less of it lies in the first image."""
    house, field = (np.array([(a, 2), (b, 2), (b, 8), (a, 8)], float) for a, b in ((2, 9), (7, 40)))
    rules = Rules({"field": 0, "house": 1}, 2, largest_first=True)

    def drawn(left: int, width: int) -> np.ndarray:
        shapes = [
            Shape(name, (Ring(ring - (left, 0)),))
            for name, ring in (("house", house), ("field", field))
        ]
        return draw(shapes, (10, width), rules).mask

    whole = drawn(0, 40)
    assert (whole[2:8, 2:9] == 1).all()
    np.testing.assert_array_equal(np.hstack([drawn(0, 10), drawn(10, 30)]), whole)
    relative = [
        Shape(name, (Ring(ring / (10, 10), relative=True),))
        for name, ring in (("house", house), ("field", field))
    ]
    np.testing.assert_array_equal(draw(relative, (10, 10), rules).mask, whole[:, :10])


def test_equal_areas_are_drawn_in_the_order_of_their_file():
    square = np.array([(0.1, 0.1), (8.1, 0.1), (8.1, 8.1), (0.1, 8.1)])
    rules = Rules({"a": 0, "b": 1}, 2, largest_first=True)
    for corner in (0.0, 1 / 3, 0.7, 1.9):
        rings = [Ring(square + corner), Ring(square + 2 + corner)]
        for names in ("ab", "ba"):
            shapes = [Shape(n, (ring,)) for n, ring in zip(names, rings, strict=True)]
            assert draw(shapes, (12, 12), rules).mask[5, 5] == rules.ids[names[1]]


def test_what_has_no_label_is_left_out(tmp_path, capsys):
    """Tiles without data, and tiles that are ignored everywhere."""
    values = scene(tmp_path / "images" / "a.tif", nodata=0)
    values[:, :, :110] = 0
    with rasterio.open(tmp_path / "images" / "a.tif", "r+") as file:
        file.write(values)
    labels = ids()
    labels[:, 165:] = 255
    mask_of(tmp_path / "masks" / "a.tif", labels)
    assert main(["init-data", str(tmp_path), "--tile", str(SIDE)]) == OK
    grid = windows(SIZE, SIDE)
    kept = [window for window in grid if 110 <= window[1][0] < 165]
    found = {tuple((s.start, s.stop) for s in window_of(row)) for row in table(tmp_path)}
    assert found == set(kept)
    said = f"{len(grid) - len(kept)} tiles without a labelled pixel left out"
    assert said in capsys.readouterr().err
    names = {row["tile"] for row in table(tmp_path)}
    for kind in ("images", "labels"):
        folder = tmp_path / "tiles" / kind
        assert {p.relative_to(folder).as_posix() for p in folder.rglob("*.tif")} == names


def grid_of(
    source: str, count: int, east: float = 0.0, crs: Any = "EPSG:32633", on_map: bool = True
) -> list[Tile]:
    return [
        Tile(
            *(f"{kind}/{source}_{row}_{column}" for kind in ("i", "m")), source,
            ((row * 64, row * 64 + 64), (column * 64, column * 64 + 64)),
            (column + east, row, column + east + 1, row + 1), crs, on_map,
        )
        for row in range(count) for column in range(count)
    ]  # fmt: skip


def test_splits_are_blocks_of_neighbours():
    tiles = grid_of("a", 20)
    classes = {tile.mask: {0} for tile in tiles}
    splits = divide_tiles(tiles, 0.2, {}, classes)
    val = {tile.box[:2] for tile in splits["val"]}
    assert len(val) == 5 * 16  # 5 of 25 blocks
    assert val == {
        (x + i, y + j) for x, y in val if x % 4 == y % 4 == 0 for i in range(4) for j in range(4)
    }
    assert len(splits["train"]) == 320


def test_no_ground_is_in_two_splits():
    """Two dates of one place, half overlapping, and an image elsewhere without a georeference."""
    tiles = [*grid_of("may", 10), *grid_of("june", 10, 4.5), *grid_of("plan", 10, 0, None, False)]
    classes = {tile.mask: {0} for tile in tiles}
    splits = divide_tiles(tiles, 0.2, {}, classes)
    assert {"may", "june", "plan"} == {tile.source for tile in splits["train"]}
    assert len(splits["train"]) + len(splits["val"]) < len(tiles)
    overlaps = [
        (a.source, b.source)
        for a in splits["train"] for b in splits["val"]
        if a.on_map and b.on_map and abs(a.box[0] - b.box[0]) < 1 and a.box[1] == b.box[1]
    ]  # fmt: skip
    assert not overlaps
    left_out = set(tiles) - {tile for part in splits.values() for tile in part}
    near = [b.box for b in splits["val"] if b.on_map]
    assert all(any(abs(t.box[0] - x) < 1 and t.box[1] == y for x, y, *_ in near) for t in left_out)
    known = divide_tiles(tiles, 0.2, {"may": "test", "plan": "val"}, classes)
    assert [len(known[split]) for split in ("train", "val", "test")] == [40, 100, 100]
    assert {tile.source for tile in known["train"]} == {"june"}
    known = divide_tiles(tiles, 0.2, {"may": "test", "june": "val"}, classes)
    assert [len(known[split]) for split in ("train", "val", "test")] == [100, 40, 100]


def test_one_block_is_for_training_and_tiles_may_touch():
    (tile,) = alone = grid_of("a", 1)
    assert divide_tiles(alone, 0.2, {}, {tile.mask: {0}}) == {"train": [tile]}
    beside = grid_of("b", 1, 0.995)  # an edge of half a per cent, as of rounded coordinates
    classes = {part.mask: {0} for part in (*alone, *beside)}
    found = divide_tiles([*alone, *beside], 0.2, {"b": "val"}, classes)
    assert found == {"train": alone, "val": beside}


def test_images_too_far_away_for_the_others_lie_by_themselves(monkeypatch):
    def fail(*_: Any) -> None:
        raise ValueError

    monkeypatch.setattr("rasterio.warp.transform_bounds", fail)
    tiles = [*grid_of("a", 4), *grid_of("b", 4, crs="EPSG:4326")]
    splits = divide_tiles(tiles, 0.2, {}, {tile.mask: {0} for tile in tiles})
    assert [len(splits[split]) for split in ("train", "val")] == [26, 6]


def test_tiles_of_a_turned_image_keep_place_and_meaning(tmp_path):
    """A georeference with rotation, a mask of pixels without data, scales and names of bands."""
    a, b, c, d, e, f = place = (1.5, 0.5, LEFT, 0.25, -2.0, TOP)
    path = tmp_path / "images" / "a.tif"
    values = scene(path, transform=rasterio.Affine(*place))
    valid = np.ones(SIZE, bool)
    valid[20:40, 100:120] = False
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
        file.scales, file.offsets = (0.5,) * 4, (3.0,) * 4
        file.write_mask(valid)
        box = tile_files.box_of(file, ((20, 40), (30, 60)))
    assert box == (
        30 * a + 20 * b + c, 30 * d + 40 * e + f, 60 * a + 40 * b + c, 60 * d + 20 * e + f,
    )  # fmt: skip
    mask_of(tmp_path / "masks" / "a.tif", ids())
    write(tmp_path, draft(tmp_path, tile=SIDE))
    for row in table(tmp_path):
        rows, columns = window_of(row)
        with rasterio.open(tmp_path / "tiles" / "images" / row["tile"]) as file:
            x, y = columns.start, rows.start
            corner = a * x + b * y + c, d * x + e * y + f
            assert tuple(file.transform)[:6] == (a, b, corner[0], d, e, corner[1])
            assert (file.scales, file.offsets) == ((0.5,) * 4, (3.0,) * 4)
            assert file.descriptions == ("blue", "green", "red", "near infrared")
            np.testing.assert_array_equal(file.dataset_mask() > 0, valid[rows, columns])
            np.testing.assert_array_equal(file.read(), values[:, rows, columns])


def test_another_reference_system_shows_the_same_ground():
    """An image over another one, but in the next zone of UTM."""
    from rasterio.warp import transform_bounds

    crs = rasterio.CRS.from_epsg(32633), rasterio.CRS.from_epsg(32632)
    first, second = [], []
    for tile in grid_of("a", 4):
        left, low, right, high = (500 * value for value in tile.box)
        box = LEFT + left, TOP + low, LEFT + right, TOP + high
        first.append(tile._replace(crs=crs[0], box=box))
        moved = transform_bounds(*crs, *box)
        second.append(Tile("i", f"b{tile.mask}", "b", tile.window, moved, crs[1], True))
    far = [tile._replace(source="c", box=(0.0, 0.0, 500.0, 500.0)) for tile in second]
    tiles = [*first, *second, *far]
    classes = {tile.mask: {0} for tile in tiles}
    found = divide_tiles(tiles, 0.2, {"a": "val"}, classes)
    assert found["val"] == first
    assert found["train"] == far


def test_folders_of_splits_are_kept(tmp_path):
    for number, split in enumerate(("train", "val", "test")):
        scene(tmp_path / "images" / split / "a.tif", 10_000 * number, number)
        mask_of(tmp_path / "labels" / split / "a.tif", ids(seed=number))
    write(tmp_path, draft(tmp_path, tile=SIDE))
    count = len(windows(SIZE, SIDE))
    for split in ("train", "val", "test"):
        dataset = open_dataset(str(tmp_path), split)
        assert len(dataset) == count
        assert all(
            f"/{split}/" in str(row["tile"]) or row["split"] != split for row in table(tmp_path)
        )


def test_cutting_again_replaces_the_tiles(tmp_path, capsys):
    scene(tmp_path / "images" / "a.tif")
    mask_of(tmp_path / "masks" / "a.tif", ids())
    command = ["init-data", str(tmp_path), "--tile"]
    assert main([*command, "100"]) == OK
    before = sorted((tmp_path / "tiles").rglob("*"))
    assert main([*command, "64"]) == USAGE
    assert "data.yaml exists; add --overwrite" in capsys.readouterr().err
    (tmp_path / "data.yaml").rename(tmp_path / "old.yaml")
    assert main([*command, "64"]) == USAGE
    assert "tiles exists; add --overwrite" in capsys.readouterr().err
    (tmp_path / "old.yaml").rename(tmp_path / "data.yaml")
    assert main([*command, "64", "--overwrite"]) == OK
    assert len(table(tmp_path)) == len(windows(SIZE, 64))
    assert before != sorted((tmp_path / "tiles").rglob("*"))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert main(["init-data", str(tmp_path), "--overwrite"]) == OK  # the images as they are
    assert "tiles" not in (tmp_path / "train.txt").read_text()


def test_a_failure_leaves_the_earlier_tiles(tmp_path, monkeypatch, capsys):
    scene(tmp_path / "images" / "a.tif")
    scene(tmp_path / "images" / "b.tif", 10_000)
    mask_of(tmp_path / "masks" / "a.tif", ids())
    mask_of(tmp_path / "masks" / "b.tif", ids())
    command = ["init-data", str(tmp_path), "--overwrite", "--tile", "64"]
    assert main(command) == OK
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "tiles").rglob("*")}
    path = tmp_path / "images" / "b.tif"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert main(command) != OK
    assert "b.tif: broken image file" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "tiles").rglob("*")} == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_tiles_that_cannot_be_put_in_place(tmp_path, monkeypatch, capsys):
    """The earlier ones come back."""
    scene(tmp_path / "images" / "a.tif")
    mask_of(tmp_path / "masks" / "a.tif", ids())
    command = ["init-data", str(tmp_path), "--overwrite", "--tile"]
    assert main([*command, "100"]) == OK
    before = table(tmp_path)
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name.endswith(".part"):
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    assert main([*command, "64"]) == FAILED
    assert "tiles: cannot write: Permission denied" in capsys.readouterr().err
    assert table(tmp_path) == before
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: refuse(Path("x.part"), tmp_path))
    assert main([*command, "64"]) == FAILED
    assert ".tiles.part: cannot write: Permission denied" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["16", "-5"])
def test_sizes_that_make_no_sense(tmp_path, capsys, value):
    scene(tmp_path / "images" / "a.tif")
    mask_of(tmp_path / "masks" / "a.tif", ids())
    assert f"--tile {value}: give " in refusal(capsys, "init-data", tmp_path, "--tile", value)
    (tmp_path / "tiles").mkdir()
    assert main(["init-data", str(tmp_path), "--tile", "64", "--overwrite"]) == USAGE
    assert "tiles: exists, and was not written by --tile" in capsys.readouterr().err


def test_transparent_tiles_of_one_colour_hold_nothing(tmp_path):
    """Near infrared may be marked as alpha: zero there is data if other bands are not blank."""
    picture = {"dtype": "uint8", "photometric": "rgb", "alpha": "yes"}
    values = scene(tmp_path / "images" / "a.tif", **picture).astype(np.uint8)
    values[:, :, :110], values[3, :, 165:] = 0, 0
    values[:3, :, 165:] = np.arange(165) % 251  # columns of one colour each
    with rasterio.open(tmp_path / "images" / "a.tif", "r+") as file:
        assert file.colorinterp[3].name == "alpha"
        file.write(values)
    mask_of(tmp_path / "masks" / "a.tif", ids())
    assert main(["init-data", str(tmp_path), "--tile", str(SIDE)]) == OK
    kept = {window for window in windows(SIZE, SIDE) if window[1][0] >= 110}
    assert {tuple((s.start, s.stop) for s in window_of(row)) for row in table(tmp_path)} == kept


def test_pictures_without_a_place(tmp_path, capsys):
    """PNG and alpha are kept; JPEG is refused."""
    from PIL import Image

    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    values = np.random.default_rng(2).integers(0, 255, (*SIZE, 4)).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "images" / "a.png")
    Image.fromarray(ids()).save(tmp_path / "masks" / "a.png")
    assert main(["init-data", str(tmp_path), "--tile", "64"]) == OK
    for row in table(tmp_path):
        with rasterio.open(tmp_path / "tiles" / "images" / row["tile"]) as file:
            assert [colour.name for colour in file.colorinterp] == ["red", "green", "blue", "alpha"]
            assert file.crs is None
            assert file.transform.is_identity
            rows, columns = window_of(row)
            np.testing.assert_array_equal(file.read(), values[rows, columns].transpose(2, 0, 1))
    assert main(["doctor", str(tmp_path), "--quick"]) == OK
    Image.fromarray(values[..., :3]).save(tmp_path / "images" / "a.jpg")
    (tmp_path / "images" / "a.png").unlink()
    assert main(["init-data", str(tmp_path), "--tile", "64", "--overwrite"]) == FAILED
    said = "images/a.jpg: tiles are cut from TIFF and PNG files only; convert it first"
    assert said in capsys.readouterr().err


def test_masks_of_another_size(tmp_path, capsys):
    scene(tmp_path / "images" / "a.tif")
    mask_of(tmp_path / "masks" / "a.tif", ids((100, 100)))
    assert main(["init-data", str(tmp_path), "--tile", "64"]) == FAILED
    assert "a.tif: has 330x200 pixels, its mask 100x100" in capsys.readouterr().err


def test_colour_masks_and_large_tiff_masks(tmp_path, monkeypatch):
    from PIL import Image

    scene(tmp_path / "images" / "a.tif")
    colours = np.array([(0, 0, 0), (255, 0, 0), (0, 0, 255)], np.uint8)[ids()]
    (tmp_path / "masks").mkdir()
    Image.fromarray(colours).save(tmp_path / "masks" / "a.png")
    write(tmp_path, draft(tmp_path, tile=SIDE))
    for row in table(tmp_path):
        mask = read_mask(tmp_path / "tiles" / "labels" / row["tile"], rgb=True)
        np.testing.assert_array_equal(mask, colours[window_of(row)])
    assert "colour_map" in (tmp_path / "data.yaml").read_text()
    mask_of(tmp_path / "m.tif", ids().astype(np.uint16))
    monkeypatch.setattr(tile_files, "MAX_PIXELS", 1000)
    mask, _ = tile_files.mask_to_cut(tmp_path / "m.tif")
    np.testing.assert_array_equal(mask[60:90, 3:70], ids()[60:90, 3:70])


def test_a_full_disk_is_told(tmp_path, capsys):
    """Also where only closing a file would notice: no tile is cut off."""
    import resource

    scene(tmp_path / "images" / "a.tif")
    mask_of(tmp_path / "masks" / "a.tif", ids())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, before[1]))
    try:
        code = main(["init-data", str(tmp_path), "--tile", "64"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == FAILED
    assert "a_0_0.tif: cannot write: File too large" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "masks"]


def test_a_second_process_is_refused(tmp_path):
    """It would remove the tiles of the first."""
    with tile_folder.TileFolder(tmp_path, 64) as first:
        with pytest.raises(SetrError, match="another `setr init-data` is at work here"):
            tile_folder.TileFolder(tmp_path, 64)
        assert (tmp_path / ".tiles.part").is_dir()
        assert first.tiles == []
    with tile_folder.TileFolder(tmp_path, 64):
        pass


def test_nothing_is_cut_where_a_list_would_be_replaced(tmp_path, capsys):
    scene(tmp_path / "images" / "a.tif")
    mask_of(tmp_path / "masks" / "a.tif", ids())
    (tmp_path / "train.txt").write_text("mine\n")
    command = ["init-data", str(tmp_path), "--tile", "100"]
    assert "train.txt: a draft would replace this list" in refusal(capsys, *command)
    assert main([*command, "--overwrite"]) == USAGE
    assert (tmp_path / "train.txt").read_text() == "mine\n"
    assert not (tmp_path / "tiles").exists()
    assert main([*command, "--name", "other.yaml"]) == OK
    assert main([*command, "--name", "third.yaml"]) == USAGE
    said = "tiles exists; add --overwrite to replace it, or rename it to keep it"
    assert said in capsys.readouterr().err


def test_images_in_a_folder_called_tiles(tmp_path):
    """They are images unless init-data cut them."""
    from setr.prediction.ground import Georeference

    scene(tmp_path / "tiles" / "a.tif")
    geo = Georeference("EPSG:32633", (METRES, 0, LEFT, 0, -METRES, TOP))
    put(tmp_path / "x.geojson", layer(feature(square(9, 9, 40), geo, "OGC:CRS84", name="house")))
    assert main(["init-data", str(tmp_path)]) == OK
    assert (read_mask(tmp_path / "masks_drawn" / "tiles" / "a.png") == 0).sum() == 1600
    for name in ("images", "masks"):
        mask_of(tmp_path / "nested" / name / "tiles" / "a.tif", ids())
    assert main(["init-data", str(tmp_path / "nested")]) == OK


def test_turned_images_are_refused(tmp_path, capsys):
    """Tiles are parts of the stored pixels, masks are drawn on the image as it is shown."""
    from PIL import Image

    tag = Image.Exif()
    tag[0x0112] = 3
    values = np.random.default_rng(2).integers(0, 255, (*SIZE, 3)).astype(np.uint8)
    for suffix, options in (("png", {"exif": tag}), ("tif", {"tiffinfo": {0x0112: 3}})):
        root = tmp_path / suffix
        for name in ("images", "masks"):
            (root / name).mkdir(parents=True)
        Image.fromarray(values).save(root / "images" / f"a.{suffix}", **options)
        Image.fromarray(ids()).save(root / "masks" / "a.png")
        assert main(["init-data", str(root), "--tile", "64"]) == FAILED
        said = f"images/a.{suffix}: an orientation tag (EXIF) turns it, and tiles are cut as stored"
        assert said in capsys.readouterr().err


def test_no_tiles_left_for_training(tmp_path, capsys):
    """One place at two dates, one of them for validation."""
    for split in ("train", "val"):
        scene(tmp_path / "images" / split / f"{split}.tif")
        mask_of(tmp_path / "labels" / split / f"{split}.tif", ids())
    assert main(["init-data", str(tmp_path), "--tile", "64"]) == DATA_CHECK_FAILED
    said = "all tiles for training show ground of images for validation or testing"
    assert said in capsys.readouterr().err
    assert not (tmp_path / "data.yaml").exists()


def test_masks_that_give_way_to_outlines_leave_no_tiles(tmp_path):
    """Tiles of masks without any class are not among those of the outlines."""
    scene(tmp_path / "images" / "a.tif")
    mask_of(tmp_path / "masks" / "a.tif", np.full(SIZE, 255, np.uint8))
    with tile_folder.TileFolder(tmp_path, 64) as tiles:
        tiles.cut_files([("images/a.tif", "masks/a.tif")])
        tiles.clear()
        assert (tiles.tiles, list((tmp_path / ".tiles.part").iterdir())) == ([], [])
