"""The pictures of docs/gallery.md: free photographs made small as cameras do, and enlarged.

    python benchmarks/gallery.py docs/images

It runs the commands that the page shows, on photographs that come inside scikit-image's wheel (public domain
or CC0), and puts the same part of each result side by side: bicubic, ClearSR, Real-ESRGAN (extra `peers`),
original.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import skimage.data
from PIL import Image

SIDE = 256  # pixels of the original that are shown
# Photograph, preset of the degradation, left and top of what is shown.
PICTURES = (
    ("astronaut", "real", (128, 20)),
    ("chelsea", "real", (60, 30)),
    ("coffee", "real", (180, 100)),
    ("rocket", "real", (230, 150)),
    ("astronaut", "full", (128, 20)),
    ("chelsea", "light", (60, 30)),
    ("coffee", "camera", (180, 100)),
    ("rocket", "bicubic", (230, 150)),
)


def clearsr(*arguments: str | Path) -> None:
    """Run a command, as one would type it."""
    subprocess.run([sys.executable, "-m", "clearsr", *map(str, arguments)], check=True)


def main() -> None:
    target = Path(sys.argv[1])
    for name, preset, (left, top) in PICTURES:
        with tempfile.TemporaryDirectory() as folder:
            photograph, lr, ours, theirs = (
                Path(folder) / f"{kind}.png" for kind in ("photo", "lr", "ours", "theirs")
            )
            Image.fromarray(getattr(skimage.data, name)()).save(photograph)
            clearsr("degrade", photograph, "--preset", preset, "--hr-out", Path(folder) / "hr.png", "-o", lr)
            clearsr("upscale", lr, "-o", ours)
            clearsr("upscale", lr, "--baseline", "realesrgan", "-o", theirs)
            hr = Image.open(Path(folder) / "hr.png").convert("RGB")
            bicubic = Image.open(lr).convert("RGB").resize(hr.size, Image.Resampling.BICUBIC)
            columns = [bicubic, Image.open(ours).convert("RGB"), Image.open(theirs).convert("RGB"), hr]
            sheet = Image.new("RGB", (SIDE * len(columns), SIDE))
            for i, column in enumerate(columns):
                sheet.paste(column.crop((left, top, left + SIDE, top + SIDE)), (SIDE * i, 0))
            sheet.save(target / f"gallery-{name}-{preset}.jpg", quality=88)


if __name__ == "__main__":
    main()
