"""Whether a change of the code leaves every result as it was, bit for bit.

    python benchmarks/same_output.py before.json
    ... change the code ...
    python benchmarks/same_output.py after.json --against before.json

Ten small pictures of many kinds go through `upscale` (in memory, in blocks, with latents on disk, with every
scheduler), `batch`, `evaluate` and `serve`; the SHA-256 of every file that comes out is written to JSON. What
decides how much is done at once is set here rather than by `--max-memory`, since what is free depends on the
moment. Both runs must be on one machine with the same packages. Exit code 1 if anything differs.
"""

import argparse
import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_CBWR"] = "COMPATIBLE"  # else a sum may depend on where in memory its numbers lie

import numpy as np
import tifffile
from PIL import Image

from clearsr.cli import main as clearsr

SCHEDULERS = ("ddim", "dpm++", "ddpm", "unipc", "euler")
COMMAND = [sys.executable, "-m", "clearsr"]
IN_BLOCKS = {"IN_MEMORY_BYTES_PER_PIXEL": 10**9, "PIECE_SIDES": (256,)}
ON_DISK = {**IN_BLOCKS, "LATENTS_SHARE": 0.0}


def make_pictures(folder: Path) -> None:
    """Ten pictures: photographs' formats, depths, transparency, orientation, odd sizes."""
    random = np.random.default_rng(0)

    def picture(height: int, width: int, channels: int = 3) -> np.ndarray:
        y, x = np.mgrid[:height, :width] / 12
        waves = [np.sin(x * (c + 1)) * np.cos(y * (3 - c)) + (x > y) for c in range(channels)]
        noisy = np.stack(waves, axis=-1) + random.normal(0, 0.1, (height, width, channels))
        return ((noisy - noisy.min()) / (np.ptp(noisy) + 1e-9) * 255).astype(np.uint8)

    folder.mkdir()
    Image.fromarray(picture(56, 72)).save(folder / "photo.jpg", quality=90)
    Image.fromarray(picture(30, 41, 1)[..., 0]).save(folder / "grey.png")
    tifffile.imwrite(folder / "deep.tif", picture(48, 64).astype(np.uint16) * 257, photometric="rgb")
    clear = picture(60, 50, 4)
    clear[:20, :, 3] = 0
    Image.fromarray(clear).save(folder / "clear.png")
    Image.fromarray(picture(20, 110)).save(folder / "wide.webp", lossless=True)
    Image.fromarray(picture(40, 40)).quantize(64).save(folder / "palette.gif")
    Image.fromarray(picture(1, 1)).save(folder / "tiny.bmp")
    Image.fromarray(picture(170, 90)).save(folder / "tall.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: a quarter turn
    Image.fromarray(picture(33, 57)).save(folder / "turned.jpg", exif=exif)
    Image.fromarray(picture(35, 45, 2), "LA").save(folder / "grey_clear.png")


@contextlib.contextmanager
def constants(values: dict[str, object]) -> Iterator[None]:
    """Within the block, constants of these names have these values, wherever in the package they are."""
    from clearsr import ClearSRPipeline

    assert ClearSRPipeline.__module__ in sys.modules, "what it uses is loaded"
    found = [
        (module, name)
        for key, module in sorted(sys.modules.items())
        if key.startswith("clearsr.")
        for name in values
        if name in vars(module)
    ]
    assert {name for _, name in found} == set(values), "a constant has another name now"
    before = [getattr(module, name) for module, name in found]
    for module, name in found:
        setattr(module, name, values[name])
    try:
        yield
    finally:
        for (module, name), value in zip(found, before, strict=True):
            setattr(module, name, value)


def run(*arguments: object) -> None:
    """One command line that must succeed, in this process."""
    line = [str(argument) for argument in arguments]
    print("clearsr", *line, file=sys.stderr)
    assert clearsr([*line, "--quiet"]) == 0, line


def upscale_all(pictures: Path, out: Path) -> None:
    """Every picture and setting, in memory, in blocks and on disk."""
    places: dict[str, dict[str, object]] = {"memory": {}, "blocks": IN_BLOCKS, "disk": ON_DISK}
    small = ("--tile", 32, "--set", "tile.overlap=8")
    from_far = ("--set", "start_timestep=999", "--set", "spacing=trailing")
    for place, values in places.items():
        with constants(values) if values else contextlib.nullcontext():
            run("upscale", pictures, "-o", out / place / "plain")
            for name in SCHEDULERS:
                to = out / place / re.sub(r"\W", "p", name)
                more = ("--scheduler", name, "--steps", 3, "--guidance-scale", 1.5, *small)
                run("upscale", pictures / "tall.png", "-o", to, *more, *from_far)
            adjusted = (
                "--set",
                "lsa.target=z_0",
                "--set",
                "lsa.preset=fidelity",
                "--steps",
                4,
                "--color",
                "adain",
                "--upscale",
                2.5,
            )
            two = (pictures / "clear.png", pictures / "deep.tif")
            run("upscale", *two, "-o", out / place / "lsa", *adjusted)
            for kind in ("jpg", "webp", "tiff", "avif"):
                chosen = ("--format", kind, "--steps", 1, "--start", "noise", *from_far)
                run("upscale", pictures / "photo.jpg", "-o", out / place / kind, *chosen)


def serve_all(pictures: Path, out: Path) -> None:
    """What the HTTP API answers with for some of the pictures."""
    out.mkdir(parents=True)
    line = [*COMMAND, "serve", "--api-only", "--port", "0"]
    server = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = re.search(r"http://[\d.:]+", server.stdout.readline())
        assert address is not None, "the server did not say where it is"
        wait_for(f"{address[0]}/healthz")
        for name in ("photo.jpg", "clear.png", "deep.tif"):
            body = (
                f'--x\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
                + (pictures / name).read_bytes()
                + b"\r\n--x--\r\n"
            )
            headers = {"Content-Type": "multipart/form-data; boundary=x"}
            request = urllib.request.Request(f"{address[0]}/v1/upscale", body, headers)
            with urllib.request.urlopen(request) as answer:
                (out / f"{name}.png").write_bytes(answer.read())
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()


def wait_for(address: str, seconds: int = 60) -> None:
    """Until a server answers there."""
    end = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(address).close()
            return
        except urllib.error.URLError:
            assert time.monotonic() < end, "the server does not answer"
            time.sleep(0.2)


def digests_of_everything() -> dict[str, str]:
    """Run it all in a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        pictures, out = Path(folder, "pictures"), Path(folder, "out")
        make_pictures(pictures)
        upscale_all(pictures, out)
        batch = [*COMMAND, "batch", str(pictures), "-o", str(out / "batch"), "--quiet", "--workers", "1"]
        subprocess.run(batch, check=True, stdout=subprocess.DEVNULL)
        compared = ("--measures", "psnr,ssim,niqe", "--baselines", "bicubic", "--upscale", 4)
        for name in ("photo.jpg", "turned.jpg"):
            Path(folder, "lr").mkdir(exist_ok=True)
            Image.open(pictures / name).convert("RGB").save(Path(folder, "lr", f"{Path(name).stem}.png"))
        hr = Path(folder, "hr")
        hr.mkdir()
        for path in Path(folder, "lr").iterdir():
            picture = Image.open(path)
            larger = (4 * picture.width, 4 * picture.height)
            picture.resize(larger, Image.Resampling.LANCZOS).save(hr / path.name)
        results = ("--csv", out / "evaluate.csv", "--save", out / "evaluate")
        run("evaluate", "--lr", Path(folder, "lr"), "--hr", hr, *compared, *results)
        serve_all(pictures, out / "serve")
        names = ("manifest.*", "*.json")  # they hold times and paths
        files = sorted(p for p in out.rglob("*.*") if p.is_file() and not any(map(p.match, names)))
        return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def main() -> int:
    """Write the digests, and compare them if there is something to compare with."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--against", type=Path)
    args = parser.parse_args()
    found = digests_of_everything()
    args.output.write_text(json.dumps(found, indent=1) + "\n")
    if args.against is None:
        print(f"{len(found)} files")
        return 0
    before = json.loads(args.against.read_text())
    differing = sorted(name for name in before | found if before.get(name) != found.get(name))
    print(f"{len(found)} files, {len(differing)} differ", *differing, sep="\n")
    return bool(differing)


if __name__ == "__main__":
    sys.exit(main())
