"""Corpora from packages: small packages made here and, in heavy tests, the real ones."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw
from test_corpora_names import PUBLIC, SVG

from pipelines.samples import emoji_names, emoji_sets
from pipelines.samples.catalog import build
from pipelines.samples.rendering import UnusablePicture, on_white
from pipelines.samples.table import COMMON_FIELDS

COLUMNS = [field.name for field in COMMON_FIELDS]


def drawing(seed: int, side: int = 64, mode: str = "RGBA") -> bytes:
    """A disc on a transparent background, as PNG; different for each seed."""
    image = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    ImageDraw.Draw(image).ellipse((side // 8, side // 8, side // 2, side // 2), fill=(200, 5 * seed, 30, 255))
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def write_tarball(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def write_emoji(cache: Path, count: int = 6) -> None:
    """The packages of both sets with `count` emoji, a skin tone, one emoji without a name and one without a picture."""
    codes = [f"{0x1F600 + i:X}" for i in range(count)]
    index = [
        {"unified": code, "image": f"{code.lower()}.png", "has_img_google": True, "has_img_twitter": True}
        for code in [*codes, "1F3FB", "2764-FE0F", "1F700"]
    ]
    for name in ("google", "twitter"):
        files = {f"img/{name}/64/{entry['image']}": drawing(i) for i, entry in enumerate(index[:-1])}
        files["emoji.json"] = json.dumps(index).encode()
        write_tarball(cache / f"emoji-datasource-{name}-{emoji_sets.VERSION}.tgz", files)
    english = [{"label": f"face {c}", "hexcode": c, "tags": ["face", "grin"], "group": 0} for c in [*codes, "1F700"]]
    chinese = [{"label": f"脸 {c}", "hexcode": c, "tags": ["脸"], "group": 0} for c in [*codes, "1F700"]]
    names = {"en/data.json": english, "zh/data.json": chinese}
    files = {name: json.dumps(data).encode() for name, data in names.items()}
    files["en/messages.json"] = json.dumps({"groups": [{"key": "smileys-emotion", "order": 0}]}).encode()
    write_tarball(cache / f"emojibase-data-{emoji_names.VERSION}.tgz", files)


def rows_of(path: str) -> list[dict[str, Any]]:
    table = pq.read_table(path)
    assert table.column_names[: len(COLUMNS)] == COLUMNS
    rows = table.to_pylist()
    assert len({row["key"] for row in rows}) == len(rows)
    return rows


def test_both_sets_of_emoji_share_their_concepts_and_not_their_items(tmp_path: Path) -> None:
    """A split by concept must hold across drawings, and a row must not pass for another drawing's."""
    write_emoji(tmp_path / "cache")
    google, twitter = (
        build(f"emoji-{name}", tmp_path / name, cache=tmp_path / "cache") for name in ("google", "twitter")
    )
    assert (google.pictures, google.concepts) == (6, 6)
    assert google.dropped == {"no_name": 1, "no_picture": 1, "skin_tone": 1}
    one, other = rows_of(google.path), rows_of(twitter.path)
    assert [row["concept"] for row in one] == [row["concept"] for row in other] == [f"1F60{i}" for i in range(6)]
    assert not {row["item"] for row in one} & {row["item"] for row in other}
    assert one[0] | {"image": b""} == {
        "key": "google-1F600",
        "item": "google:1F600",
        "concept": "1F600",
        "source": "google",
        "image": b"",
        "caption": ["face 1F600", "脸 1F600"],
        "keywords": ["face", "grin"],
        "keywords_zh": ["脸"],
        "group": "smileys-emotion",
        "split": "train",
    }
    with Image.open(io.BytesIO(one[0]["image"])) as image:
        assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (64, 64), (255, 255, 255))
    assert "Apache" in (tmp_path / "google" / "NOTICE.txt").read_text()
    assert "CC BY 4.0" in (tmp_path / "twitter" / "NOTICE.txt").read_text()


def test_the_same_input_leaves_the_file_untouched_and_other_options_do_not(tmp_path: Path) -> None:
    """A file with another date counts as changed, and the table that it was embedded into refuses it."""
    write_emoji(tmp_path / ".cache")
    path = Path(build("emoji-google", tmp_path).path)
    before = path.stat()
    build("emoji-google", tmp_path)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert [p.name for p in tmp_path.glob("*.p*")] == ["emoji-google.parquet"], "no partial file stays"

    build("emoji-google", tmp_path, captions="label+tags")
    assert rows_of(str(path))[0]["caption"] == ["face 1F600", "脸 1F600", "face, grin", "脸"]


def test_a_draw_is_as_large_as_asked_and_the_seed_decides_it(tmp_path: Path) -> None:
    write_emoji(tmp_path / "cache", count=15)
    keys = [
        [row["key"] for row in rows_of(build("emoji-google", tmp_path, cache=tmp_path / "cache", **options).path)]
        for options in ({"pictures": 5}, {"pictures": 5}, {"pictures": 5, "seed": 1}, {"pictures": 500})
    ]
    assert keys[0] == keys[1] != keys[2]
    assert [len(drawn) for drawn in keys] == [5, 5, 5, 15]


def test_a_set_of_which_nothing_is_left_is_an_error(tmp_path: Path) -> None:
    write_emoji(tmp_path / "cache", count=0)
    with pytest.raises(ValueError, match="no usable picture"):
        build("emoji-google", tmp_path / "out", cache=tmp_path / "cache")
    assert not list((tmp_path / "out").iterdir())


def write_debian(cache: Path, kind: str, files: dict[str, bytes], links: dict[str, str]) -> None:
    root = cache / "tree"
    for name, content in files.items():
        path = root / "usr/share/openclipart" / kind / f"{name}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    for name, target in links.items():
        path = root / "usr/share/openclipart" / kind / f"{name}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(f"{target}.{kind}")
    (root / "DEBIAN").mkdir()
    control = f"Package: openclipart-{kind}\nVersion: 1\nArchitecture: all\nMaintainer: x <x@x.org>\nDescription: x\n"
    (root / "DEBIAN" / "control").write_text(control)
    command = ["dpkg-deb", "--root-owner-group", "-Znone", "-b", str(root), f"{cache}/openclipart-{kind}_1_all.deb"]
    subprocess.run(command, check=True, capture_output=True)
    shutil.rmtree(root)


@pytest.fixture
def cliparts(tmp_path: Path) -> Path:
    """Small packages: a drawing under two paths, the same pixels twice, and each reason to leave a drawing out."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb is needed to make a Debian package")
    cache = tmp_path / "cache"
    cache.mkdir()
    free = {"title": "Cat 1", "license": PUBLIC}
    usable = ("animals/cat_01", "animals/cat_2", "animals/huge", "animals/white", "animals/bad")
    titles = dict.fromkeys(usable, free)
    titles |= {
        "animals/untitled": {"title": "", "license": PUBLIC},
        "animals/gpl": {"title": "Tux", "license": "http://creativecommons.org/licenses/GPL/2.0/"},
        "signs/stop": {"title": "Stop", "license": PUBLIC},
        "signs/again": {"title": "Halt", "license": PUBLIC},
    }
    svgs = {name: SVG.format(**told).encode() for name, told in titles.items()}
    write_debian(cache, "svg", svgs, {"pets/cat": "../animals/cat_01"})
    blank, huge = Image.new("RGBA", (9, 9), (255, 255, 255, 0)), Image.new("1", (6_000, 6_000))
    pngs = {name: drawing(i) for i, name in enumerate(titles)}
    pngs["animals/cat_2"] = drawing(20, side=1_000)
    pngs["animals/bad"] = pngs["animals/bad"][:90]
    pngs["signs/again"] = recompressed(pngs["signs/stop"])
    for name, image in (("animals/white", blank), ("animals/huge", huge)):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        pngs[name] = buffer.getvalue()
    write_debian(cache, "png", pngs, {"pets/cat": "../animals/cat_01"})
    return cache


def recompressed(png: bytes) -> bytes:
    """Other bytes, the same pixels."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(png)).save(buffer, "PNG", compress_level=0)
    assert buffer.getvalue() != png
    return buffer.getvalue()


def test_each_clip_art_is_there_once_under_its_title(tmp_path: Path, cliparts: Path) -> None:
    info = build("openclipart", tmp_path / "out", cache=cliparts)
    assert info.dropped == {
        "blank": 1,
        "link": 1,
        "no_title": 1,
        "other_license": 1,
        "same_picture": 1,
        "too_many_pixels": 1,
        "unreadable": 1,
    }
    rows = rows_of(info.path)
    assert [row["key"] for row in rows] == ["animals/cat_01", "animals/cat_2", "signs/again"]
    assert [row["caption"] for row in rows] == [["Cat 1"], ["Cat 1"], ["Halt"]]
    assert [row["concept"] for row in rows] == ["cat", "cat", "halt"]
    assert {tuple(row["keywords"]) for row in rows} == {("animal", "cat & dog")}
    assert [row["group"] for row in rows] == ["animals", "animals", "signs"]
    assert len({row["item"] for row in rows}) == 3
    with Image.open(io.BytesIO(rows[1]["image"])) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (512, 512))
        assert min(image.getpixel((500, 500))) > 250, "what was transparent is white"
    assert "public domain" in (tmp_path / "out" / "NOTICE.txt").read_text()


def test_a_draw_of_clip_arts_passes_over_what_cannot_be_used(tmp_path: Path, cliparts: Path) -> None:
    infos = [build("openclipart", tmp_path / str(i), cache=cliparts, pictures=2) for i in range(2)]
    assert [info.pictures for info in infos] == [2, 2]
    first, again = (Path(info.path).read_bytes() for info in infos)
    assert first == again


def test_transparent_parts_of_every_mode_become_white() -> None:
    """A plain conversion loses a palette's transparent entry and a grey picture's alpha: the picture turns black."""
    for mode in ("RGBA", "LA", "P"):
        data = drawing(1, mode=mode) if mode != "P" else palette_with_a_hole()
        image = on_white(data)
        assert image.getpixel((0, 0)) == (255, 255, 255), mode
        assert image.getpixel((20, 20)) != (255, 255, 255), mode


def palette_with_a_hole() -> bytes:
    image = Image.open(io.BytesIO(drawing(1))).convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=image.getpixel((0, 0)))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"), [(b"", "unreadable"), (b"GIF89a", "unreadable"), (drawing(1)[:60], "unreadable")]
)
def test_what_is_no_picture_is_left_out_with_its_reason(data: bytes, reason: str) -> None:
    with pytest.raises(UnusablePicture) as raised:
        on_white(data)
    assert raised.value.reason == reason


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("name", "client", "pictures", "concepts"),
    [
        ("emoji-google", "npm", 1_906, 1_906),
        ("emoji-twitter", "npm", 1_906, 1_906),
        ("openclipart", "apt-get", 6_700, 2_400),
    ],
)
def test_the_real_packages_give_the_whole_corpus(
    tmp_path: Path, name: str, client: str, pictures: int, concepts: int
) -> None:
    if shutil.which(client) is None:
        pytest.skip(f"{client} is not installed")
    info = build(name, tmp_path)
    assert info.pictures >= pictures
    assert info.concepts >= concepts
    rows = rows_of(info.path)
    assert all(row["caption"] and all(row["caption"]) for row in rows)
    assert sum(bool(row["keywords"]) for row in rows) > 0.9 * len(rows)
    for row in rows[::97]:
        with Image.open(io.BytesIO(row["image"])) as image:
            image.load()
            assert image.mode == "RGB"
            assert max(image.size) <= 512
