"""Contact sheets (`dnd look ROOT`): what was kept of a shard, and what was filtered or rejected, with the reasons.

What was dropped is not stored: the unit's first documents are rendered again here, once as planned, which gives the
reasons, and once without filters, which gives the pictures.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import groupby

from PIL import Image, ImageDraw, ImageFont

from data_specs import storage
from data_specs.receipts import read_receipt, receipt_name
from data_specs.records import Dropped, Reason, Receipt, Sample, SourceUnit
from data_specs.root import spec_of
from data_specs.shards import Shard
from data_specs.spec import Filters, Spec
from data_specs.units import Plan, read_plan
from pipeline.extend import without
from pipeline.removal import read_removed
from pipeline.render import Renderer

DOCUMENTS = 8  # documents of a unit that are rendered again
KEPT, DROPPED = 16, 24  # pictures shown
TILE, COLUMNS, LINE, GAP = 160, 8, 16, 6  # pixels, tiles, pixels of a line of text, pixels between tiles
Tile = tuple[Image.Image | None, str]  # a picture, and what stands below it


def look(root: str, set_name: str, number: int) -> str:
    """Writes ROOT/look/SET-NNNNNN.png and returns its address. Raises ValueError where there is no such shard."""
    set_uri = storage.join(root, set_name)
    plan = read_plan(set_uri)
    if plan is None or plan.identity.stage != "render":
        raise ValueError(f"{set_uri}: there is no set of rendered images here")
    unit = next((unit for unit in plan.units() if unit.unit == number), None)
    receipt = read_receipt(storage.join(set_uri, receipt_name(number)), plan.digest)
    if not isinstance(unit, SourceUnit) or receipt is None:
        raise ValueError(f"{set_uri}: unit {number} of {plan.num_units} is not done")
    spec = spec_of(root, "images")
    rows = list(_rows(spec, plan, unit, receipt))
    uri = storage.join(root, "look", f"{set_name.replace('/', '-')}-{number:06d}.png")
    buffer = io.BytesIO()
    draw_sheet(f"{set_name}, shard {number}: {_account(receipt)}", rows).save(buffer, "PNG")
    storage.write_bytes(uri, buffer.getvalue())
    return uri


def _account(receipt: Receipt) -> str:
    filtered = sum(receipt.filtered.values())
    return (
        f"{receipt.offered} offered, {receipt.written} written, {filtered} filtered, {len(receipt.rejected)} rejected"
    )


def _rows(spec: Spec, plan: Plan, unit: SourceUnit, receipt: Receipt) -> Iterator[tuple[str, list[Tile]]]:
    """(title, tiles) of what was kept, then of what was dropped by kind and reason."""
    kept = _kept(plan, receipt)
    yield f"kept: {len(kept)} of {receipt.written}", kept
    try:
        dropped = sorted(_dropped(spec, plan, unit), key=_reason)
    except (ValueError, OSError) as error:
        yield f"what was dropped cannot be shown: {error}"[:150], []
        return
    for (kind, reason), pairs in groupby(dropped, _reason):
        tiles: list[Tile] = [(picture, f"{one.key} {one.source}") for one, picture in pairs]
        all_of_it = receipt.filtered.get(reason) or sum(one.reason == reason for one in receipt.rejected)
        yield f"{kind}: {reason}: {min(len(tiles), DROPPED)} of {all_of_it}", tiles[:DROPPED]


def _reason(pair: tuple[Dropped, Image.Image | None]) -> tuple[str, Reason]:
    return pair[0].reason.kind, pair[0].reason


def _kept(plan: Plan, receipt: Receipt) -> list[Tile]:
    if receipt.shard is None:
        return []
    shard = Shard(storage.join(plan.set_uri, receipt.shard.name), receipt.shard)
    numbers = range(0, len(shard), -(-len(shard) // KEPT))
    return [(_picture(shard.fields(number)["png"]), shard.key(number)) for number in numbers]


def _picture(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png)).convert("RGB")


def _dropped(spec: Spec, plan: Plan, unit: SourceUnit) -> list[tuple[Dropped, Image.Image | None]]:
    """What was dropped of the unit's first documents, with the picture where there is one."""
    unit = _shortened(without(unit, read_removed(plan.set_uri.rpartition("/")[0]).ids))
    filtering = Renderer(spec)
    keeping = Renderer(_without_filters(spec))
    try:
        dropped = [outcome for outcome in filtering.render(unit) if isinstance(outcome, Dropped)]
        wanted = {one.key for one in dropped}
        made = (o for o in keeping.render(unit) if isinstance(o, Sample)) if wanted else ()
        pictures = {sample.key: _picture(sample.fields["png"]) for sample in made if sample.key in wanted}
    finally:
        filtering.close()
        keeping.close()
    return [(one, pictures.get(one.key)) for one in dropped]


def _shortened(unit: SourceUnit) -> SourceUnit:
    if unit.tar:
        tar = unit.tar.model_copy(update={"count": min(unit.tar.count, DOCUMENTS), "last": False})
        return unit.model_copy(update={"tar": tar})
    return unit.model_copy(update={"documents": unit.documents[:DOCUMENTS]})


def _without_filters(spec: Spec) -> Spec:
    pages = spec.render.pages.model_copy(update={"min_words": 0})
    render = spec.render.model_copy(update={"filters": Filters(min_ink=0), "pages": pages})
    return spec.model_copy(update={"render": render})


def draw_sheet(title: str, rows: list[tuple[str, list[Tile]]]) -> Image.Image:
    """A sheet: the title, then each row's title and its tiles, COLUMNS side by side, with a line of text below each."""
    height_of = lambda tiles: 2 * LINE + -(-len(tiles) // COLUMNS) * (TILE + LINE + GAP)  # noqa: E731
    size = COLUMNS * (TILE + GAP) + GAP, 2 * LINE + sum(height_of(tiles) for _, tiles in rows) + GAP
    sheet = Image.new("RGB", size, "#f6f8fa")
    draw, font, top = ImageDraw.Draw(sheet), ImageFont.load_default(12), 2 * LINE
    draw.text((GAP, GAP), title, "#000000", ImageFont.load_default(14))
    for row_title, tiles in rows:
        draw.text((GAP, top + GAP), row_title, "#0969da", font)
        for place, tile in enumerate(tiles):
            row, column = divmod(place, COLUMNS)
            corner = GAP + column * (TILE + GAP), top + 2 * LINE - GAP + row * (TILE + LINE + GAP)
            _draw_tile(sheet, draw, font, corner, tile)
        top += height_of(tiles)
    return sheet


def _draw_tile(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    corner: tuple[int, int],
    tile: Tile,
) -> None:
    picture, text = tile
    left, top = corner
    draw.rectangle((left, top, left + TILE - 1, top + TILE - 1), "#ffffff", "#d0d7de")
    if picture is None:
        draw.text((left + GAP, top + TILE // 2), "no picture", "#cf222e", font)
    else:
        how = Image.Resampling.BOX if picture.width > TILE else Image.Resampling.NEAREST
        small = picture.resize((TILE - 2, TILE - 2), how)
        sheet.paste(small, (left + 1, top + 1))
    while draw.textlength(text, font) > TILE:
        text = text[:-2]
    draw.text((left, top + TILE), text, "#57606a", font)
