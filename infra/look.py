"""Contact sheets (`dnd look ROOT`): what was kept of a shard, and what was filtered or rejected, with the reasons.

What was dropped is not stored: the unit's first documents are rendered again here, once as planned, which gives the
reasons, and once without filters, which gives the pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_specs import storage
from data_specs.reader import decode_image, read_info
from data_specs.receipts import read_receipt, receipt_name
from data_specs.records import Dropped, Reason, Receipt, Sample, SampleInfo, SourceUnit
from data_specs.root import spec_of
from data_specs.shards import Shard
from data_specs.sources.planning import relocated
from data_specs.spec import Spec
from data_specs.text import printable
from data_specs.units import Plan, read_plan
from pipeline.filters import without_filters
from pipeline.job import moved_since
from pipeline.png import encode_photo
from pipeline.removal import read_removed, unit_without
from pipeline.render import Renderer
from pipeline.truth import truth_of_shard

DOCUMENTS = 8  # documents of a unit that are rendered again
KEPT_SHOWN = 20  # pictures
DROPPED_SHOWN = 20  # pictures for each reason
TILE = 256  # pixels a side
COLUMNS = 5  # tiles side by side
LINE = 16  # pixels of a line of text
GAP = 6  # pixels between tiles
Tile = tuple[Image.Image | None, str]  # a picture, and what stands below it
Row = tuple[str, list[Tile]]  # a title, and the tiles below it


def num_shards(root: str, set_name: str) -> int:
    """Return the number of units of a set of rendered images.

    Raises:
        ValueError: there is no such set.
    """
    return _plan(storage.join(root, set_name)).num_units


def _plan(set_uri: str) -> Plan:
    plan = read_plan(set_uri)
    if plan is None or plan.identity.stage != "render":
        raise ValueError(f"{set_uri}: there is no set of rendered images here")
    return plan


def look(root: str, set_name: str, number: int, boxes: bool = False) -> str:
    """Write ROOT/look/SET-NNNNNN.png, with the boxes of words where wanted, and return its address."""
    uri = storage.join(root, "look", f"{set_name.replace('/', '-')}-{number:06d}.png")
    storage.write(uri, encode_photo(np.asarray(contact_sheet(root, set_name, number, boxes))))
    return uri


def contact_sheet(root: str, set_name: str, number: int, boxes: bool = False) -> Image.Image:
    """Draw what was kept of a unit, and what was dropped of its first documents, with the reasons.

    Raises:
        ValueError: there is no such shard.
    """
    set_uri = storage.join(root, set_name)
    plan = _plan(set_uri)
    if not plan.num_units:
        raise ValueError(f"{set_uri}: the shard set is empty")
    unit = next((unit for unit in plan.units() if unit.unit == number), None)
    receipt = read_receipt(storage.join(set_uri, receipt_name(number)), plan.digest)
    if not isinstance(unit, SourceUnit) or receipt is None:
        raise ValueError(f"{set_uri}: unit {number} of {plan.num_units} is not done")
    spec = spec_of(root, "images")
    unit = relocated(unit, moved_since(plan, spec, root))
    rows = list(_rows(spec, plan, unit, receipt, boxes))
    return draw_sheet(f"{set_name}, shard {number}: {_account(receipt)}", rows)


def _account(receipt: Receipt) -> str:
    filtered = sum(receipt.filtered.values())
    return (
        f"{receipt.offered} offered, {receipt.written} written, {filtered} filtered, {len(receipt.rejected)} rejected"
    )


def _rows(spec: Spec, plan: Plan, unit: SourceUnit, receipt: Receipt, boxes: bool) -> Iterator[Row]:
    """(title, tiles) of what was kept, then of what was dropped by kind and reason."""
    if receipt.shard:
        shard = Shard(storage.join(plan.set_uri, receipt.shard.name), receipt.shard)
        numbers = range(0, len(shard), -(-len(shard) // KEPT_SHOWN))
        kept = [_kept(shard, number, boxes) for number in numbers]
        yield f"kept: {len(kept)} of {receipt.written}; of these {truth_of_shard(shard, numbers)}", kept
    try:
        dropped = sorted(_dropped(spec, plan, unit), key=_reason)
    except (ValueError, OSError) as error:
        yield f"what was dropped cannot be shown: {error}"[:150], []
        return
    for (kind, reason), pairs in groupby(dropped, _reason):
        tiles: list[Tile] = [(picture, f"{one.key} {one.source} {one.detail}".rstrip()) for one, picture in pairs]
        all_of_it = receipt.filtered.get(reason) or sum(one.reason == reason for one in receipt.rejected)
        yield f"{kind}: {reason}: {min(len(tiles), DROPPED_SHOWN)} of {all_of_it}", tiles[:DROPPED_SHOWN]


def _reason(pair: tuple[Dropped, Image.Image | None]) -> tuple[str, Reason]:
    return pair[0].reason.kind, pair[0].reason


def _kept(shard: Shard, number: int, boxes: bool) -> Tile:
    key = shard.key(number)
    picture = Image.fromarray(decode_image(shard.fields(number).get("png", b""), f"{shard.uri}: {key}"))
    return (with_boxes(picture, read_info(shard, number)) if boxes else picture), key


def with_boxes(picture: Image.Image, info: SampleInfo) -> Image.Image:
    """Return a picture, enlarged if it is small, with the boxes of its words, those of clipped words in red."""
    times = max(1, -(-TILE // picture.width))
    large = picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(large)
    for box, cut in zip(info.boxes, info.clipped, strict=True):
        draw.rectangle([side * times for side in box], outline="#cf222e" if cut else "#0969da")
    return large


def _dropped(spec: Spec, plan: Plan, unit: SourceUnit) -> list[tuple[Dropped, Image.Image | None]]:
    """Return what was dropped of the unit's first documents, with the picture where there is one."""
    unit = _shortened(unit_without(unit, read_removed(plan.set_uri.rpartition("/")[0])))
    filtering = Renderer(spec)
    keeping = Renderer(spec.model_copy(update={"render": without_filters(spec.render)}))
    try:
        dropped = [outcome for outcome in filtering.render(unit) if isinstance(outcome, Dropped)]
        wanted = {one.key for one in dropped}
        made = (o for o in keeping.render(unit) if isinstance(o, Sample)) if wanted else ()
        pngs = {sample.key: sample.fields["png"] for sample in made if sample.key in wanted}
    finally:
        filtering.close()
        keeping.close()
    pictures = {key: Image.fromarray(decode_image(png)) for key, png in pngs.items()}
    return [(one, pictures.get(one.key)) for one in dropped]


def _shortened(unit: SourceUnit) -> SourceUnit:
    if unit.tar:
        tar = unit.tar.model_copy(update={"count": min(unit.tar.count, DOCUMENTS), "last": False})
        return unit.model_copy(update={"tar": tar})
    return unit.model_copy(update={"documents": unit.documents[:DOCUMENTS]})


def draw_sheet(title: str, rows: list[Row]) -> Image.Image:
    """Draw a sheet: the title, then each row's title and its tiles, COLUMNS side by side, with labels below."""
    font = ImageFont.load_default(12)
    width = COLUMNS * (TILE + GAP) + GAP
    blocks = [(_wrapped(name, width - 2 * GAP), [(p, _wrapped(text, TILE)) for p, text in ts]) for name, ts in rows]
    sheet = Image.new("RGB", (width, 2 * LINE + sum(_height(*block) for block in blocks) + GAP), "#f6f8fa")
    draw = ImageDraw.Draw(sheet)
    top = 2 * LINE
    draw.text((GAP, GAP), printable(title), "#000000", ImageFont.load_default(14))
    for name, tiles in blocks:
        draw.multiline_text((GAP, top + GAP), name, "#0969da", font)
        below = top + LINE * (name.count("\n") + 2) - GAP
        for first in range(0, len(tiles), COLUMNS):
            for column, tile in enumerate(tiles[first : first + COLUMNS]):
                _draw_tile(sheet, (GAP + column * (TILE + GAP), below), tile)
            below += _height_of_line(tiles[first : first + COLUMNS])
        top += _height(name, tiles)
    return sheet


def _height(name: str, tiles: list[Tile]) -> int:
    lines = (tiles[first : first + COLUMNS] for first in range(0, len(tiles), COLUMNS))
    return LINE * (name.count("\n") + 2) + sum(map(_height_of_line, lines))


def _height_of_line(tiles: list[Tile]) -> int:
    """Pixels of tiles side by side with their labels."""
    return TILE + GAP + LINE * max(label.count("\n") + 1 for _, label in tiles)


def _wrapped(text: str, width: int) -> str:
    """Wrap a text into lines of at most `width` pixels, breaking anywhere: keys and paths have no blanks."""
    font = ImageFont.load_default(12)
    lines = [""]
    for char in printable(text):
        if font.getlength(lines[-1] + char) > width:
            lines.append("")
        lines[-1] += char
    return "\n".join(lines)


def _draw_tile(sheet: Image.Image, corner: tuple[int, int], tile: Tile) -> None:
    picture, label = tile
    left, top = corner
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    draw.rectangle((left, top, left + TILE - 1, top + TILE - 1), "#ffffff", "#d0d7de")
    if picture is None:
        draw.text((left + GAP, top + TILE // 2), "no picture", "#cf222e", font)
    else:
        how = Image.Resampling.BOX if picture.width > TILE else Image.Resampling.NEAREST
        sheet.paste(picture.resize((TILE - 2, TILE - 2), how), (left + 1, top + 1))
    draw.multiline_text((left, top + TILE), label, "#57606a", font, spacing=LINE - 12)
