"""Pictures side by side under captions, for the eye to judge."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_MARGIN, _BACKGROUND, _INK = 12, (255, 255, 255), (20, 20, 20)


def side_by_side(
    pictures: Sequence[tuple[str, Image.Image]], height: int | None = None, columns: int | None = None
) -> Image.Image:
    """One RGB picture with all of them in rows, each under its caption.

    Args:
        pictures: caption and picture. A smaller one is enlarged without smoothing, so that its
            own pixels can be seen; nothing is ever shrunk.
        height: of the pictures; unset: the tallest one's.
        columns: pictures in a row; unset: all of them.
    """
    if not pictures:
        raise ValueError("side_by_side: there must be at least one picture")
    height = max([height or 1, *(picture.height for _, picture in pictures)])
    shown = [(caption, _enlarged(picture.convert("RGB"), height)) for caption, picture in pictures]
    columns = min(columns or len(shown), len(shown))
    width = max(picture.width for _, picture in shown)
    font = ImageFont.load_default(size=max(14, height // 22))
    caption_height = round(1.8 * max(14, height // 22))
    rows = -(-len(shown) // columns)
    cell_width, cell_height = width + _MARGIN, caption_height + height + _MARGIN
    sheet = Image.new("RGB", (columns * cell_width + _MARGIN, rows * cell_height + _MARGIN), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for index, (caption, picture) in enumerate(shown):
        left = _MARGIN + index % columns * cell_width
        top = _MARGIN + index // columns * cell_height
        draw.text((left, top), caption, fill=_INK, font=font)
        sheet.paste(picture, (left, top + caption_height))
    return sheet


def _enlarged(picture: Image.Image, height: int) -> Image.Image:
    """The picture at that height, its pixels as squares."""
    if picture.height == height:
        return picture
    width = max(1, round(picture.width * height / picture.height))
    return picture.resize((width, height), Image.Resampling.NEAREST)
