"""The chain of the degradation as it is run: each step recorded, with what was drawn for it.

What is expected is written out from the papers' own tables and reads no setting of ours. The steps themselves
are tested on their own; here they are watched, and only sizes go through.
"""

import math
from collections import defaultdict
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch

from clearsr.degradation import DegradationConfig, degrade, degrade_pair, preset_config

CHAIN = import_module("clearsr.degradation.degrade")  # the package has a function of that name
KERNELS = ("gaussian_kernel", "generalized_gaussian_kernel", "plateau_kernel", "sinc_kernel")


@pytest.fixture
def chain_of(monkeypatch):
    """`chain_of(config, seed, size, upscale, make)`: the steps of one image, first to last, as tuples."""
    steps = []

    def watch(name, recorded):
        def step(image, *values, **named):
            named.pop("generator", None)
            steps.append((name, *values, *sorted(named.items())) if recorded else (name,))
            return image

        monkeypatch.setattr(CHAIN, name, step)

    def resize(image, size, mode, *, antialias):
        steps.append(("resize", size, mode, antialias))
        return torch.zeros(()).expand(3, *size)

    for name in ("add_gaussian_noise", "add_poisson_noise", "compress_jpeg", "sharpen"):
        watch(name, recorded=True)
    watch("round_to_8_bit", recorded=False)
    monkeypatch.setattr(CHAIN, "resize", resize)
    for name in KERNELS:
        monkeypatch.setattr(CHAIN, name, lambda *values, name=name: (name, *values))
    monkeypatch.setattr(CHAIN, "apply_blur", lambda image, kernel: steps.append(("blur", *kernel)) or image)

    def chain(config, seed, size=(80, 120), upscale=4, make=degrade):
        steps.clear()
        make(torch.zeros(3, *size), config, torch.Generator().manual_seed(seed), upscale)
        return list(steps)

    return chain


def stage(size, sigma, mode, noise, quality, **changes):
    """Settings of a stage that leave nothing to chance."""
    return {
        "blur": {
            "probability": 1,
            "sinc_probability": 0,
            "kernel_size": (size, size),
            "kernel_probabilities": (1, 0, 0, 0, 0, 0),
            "sigma": (sigma, sigma),
        },
        "resize": {"probabilities": (0, 0, 1), "modes": (mode,)},
        "noise": {
            "probability": 1,
            "gaussian_probability": 1,
            "gaussian_sigma": (noise, noise),
            "gray_probability": 0,
        },
        "jpeg_probability": 1,
        "jpeg_quality": (quality, quality),
        **changes,
    }


def test_every_step_has_its_own_settings_and_its_place(chain_of):
    """Blur, resize, noise, JPEG twice over, sharpening, and the last resize before or after the last JPEG."""
    config = DegradationConfig(
        first=stage(7, 1.25, "area", 5.0, 40),
        second=stage(9, 2.5, "bicubic", 7.0, 60),
        sharpening={"probability": 1, "amount": (0.5, 0.5), "sigma": (1.5, 1.5)},
        final_sinc_probability=1,
    )
    orders = []
    for seed in range(200):
        steps = chain_of(config, seed)
        assert steps[:9] == [
            ("blur", "gaussian_kernel", 7, (1.25, 1.25), 0.0),
            ("resize", (80, 120), "area", False),
            ("add_gaussian_noise", 5.0, ("gray", False)),
            ("compress_jpeg", 40),
            ("blur", "gaussian_kernel", 9, (2.5, 2.5), 0.0),
            ("resize", (20, 30), "bicubic", False),
            ("add_gaussian_noise", 7.0, ("gray", False)),
            ("sharpen", 0.5, 1.5),
            steps[8],
        ]
        jpeg_first = steps[8] == ("compress_jpeg", 60)
        end = steps[8:]
        if jpeg_first:
            end = [*end[1:3], end[0], *end[3:]]
        sinc = end[1]
        assert end == [
            ("resize", (20, 30), "bicubic", False),
            ("blur", "sinc_kernel", 9, sinc[3]),
            ("compress_jpeg", 60),
            ("round_to_8_bit",),
        ]
        assert math.pi / 3 <= sinc[3] < math.pi
        orders.append(jpeg_first)
    assert 0.35 < sum(orders) / len(orders) < 0.65  # half; 4 standard deviations are 0.14


@pytest.mark.parametrize("removed", ["blur", "noise", "jpeg"])
@pytest.mark.parametrize("place", ["first", "second"])
def test_a_step_of_chance_0_is_left_out_and_no_other(chain_of, removed, place):
    kept = {"first": stage(7, 1.25, "area", 5.0, 40), "second": stage(9, 2.5, "bicubic", 7.0, 60)}
    config = DegradationConfig(**kept, final_sinc_probability=0)
    missing = {"jpeg_probability": 0} if removed == "jpeg" else {removed: {"probability": 0}}
    kept[place] = {**kept[place], **missing}
    without = DegradationConfig(**kept, final_sinc_probability=0)
    gone = {
        ("blur", "first"): ("blur", "gaussian_kernel", 7, (1.25, 1.25), 0.0),
        ("blur", "second"): ("blur", "gaussian_kernel", 9, (2.5, 2.5), 0.0),
        ("noise", "first"): ("add_gaussian_noise", 5.0, ("gray", False)),
        ("noise", "second"): ("add_gaussian_noise", 7.0, ("gray", False)),
        ("jpeg", "first"): ("compress_jpeg", 40),
        ("jpeg", "second"): ("compress_jpeg", 60),
    }[removed, place]
    whole, rest = ({tuple(chain_of(c, seed)) for seed in range(20)} for c in (config, without))
    assert len(whole) == 2 and all(chain.count(gone) == 1 for chain in whole)  # both orders of the end
    assert {tuple(step for step in chain if step != gone) for chain in whole} == rest


# Real-ESRGAN's options for x4plus and StableSR's, as they were published: the ranges and the chances of each
# stage; `up`, `down` are the ends of the resize.
_SHAPES = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
PUBLISHED = {
    "full": [
        SimpleNamespace(
            blur=1.0, sigma=(0.2, 3.0), generalized=(0.5, 4.0), plateau=(1.0, 2.0), resize=(0.2, 0.7, 0.1),
            down=0.15, up=1.5, gaussian=(1, 30), poisson=(0.05, 3.0), jpeg=(30, 95),
        ),
        SimpleNamespace(
            blur=0.8, sigma=(0.2, 1.5), generalized=(0.5, 4.0), plateau=(1.0, 2.0), resize=(0.3, 0.4, 0.3),
            down=0.3, up=1.2, gaussian=(1, 25), poisson=(0.05, 2.5), jpeg=(30, 95),
        ),
    ],
    "light": [
        SimpleNamespace(
            blur=1.0, sigma=(0.2, 1.5), generalized=(0.5, 2.0), plateau=(1.0, 1.5), resize=(0.2, 0.7, 0.1),
            down=0.3, up=1.5, gaussian=(1, 15), poisson=(0.05, 2.0), jpeg=(60, 95),
        ),
        SimpleNamespace(
            blur=0.5, sigma=(0.2, 1.0), generalized=(0.5, 2.0), plateau=(1.0, 1.5), resize=(0.3, 0.4, 0.3),
            down=0.6, up=1.2, gaussian=(1, 12), poisson=(0.05, 1.0), jpeg=(60, 100),
        ),
    ],
}  # fmt: skip
DRAWS = 2000
SIDE = 1000  # pixels, so that a factor can be read off a size to a thousandth; LR: 250


def assert_share(found, of, expected):
    """A share of `of` draws is the expected one, within four standard deviations."""
    deviation = math.sqrt(expected * (1 - expected) / of)
    assert abs(found / of - expected) <= 4 * deviation, (found, of, expected)


def assert_fills(values, low, high):
    """Uniform draws lie in the range, reach both its ends within a fiftieth, and have its mean."""
    width = high - low
    assert low <= min(values) <= low + max(0.02 * width, 10 * width / len(values))
    assert high - max(0.02 * width, 10 * width / len(values)) <= max(values) <= high
    mean = sum(values) / len(values)
    assert abs(mean - (low + high) / 2) <= 4 * width / math.sqrt(12 * len(values))


def split(steps):
    """(first stage, second, what comes last), by the resizes: the last of three is the final one."""
    at = [number for number, step in enumerate(steps) if step[0] == "resize"]
    assert len(at) == 3
    second = next(n for n in range(at[0], at[1] + 1) if steps[n][0] == "compress_jpeg") + 1
    end = next(n for n in range(at[1] + 1, len(steps)) if steps[n][0] in ("resize", "compress_jpeg"))
    return steps[:second], steps[second:end], steps[end:]


@pytest.mark.parametrize("preset", PUBLISHED)
def test_what_is_drawn_is_what_was_published(chain_of, preset):
    config = preset_config(preset)
    stages, ends = ([], []), []
    for seed in range(DRAWS):
        first, second, end = split(chain_of(config, seed, (SIDE, SIDE)))
        stages[0].append(first)
        stages[1].append([*second, *(step for step in end if step[0] == "compress_jpeg")])
        ends.append(end)
    for published, base, seen in zip(PUBLISHED[preset], (SIDE, SIDE // 4), stages, strict=True):
        assert_stage(published, base, seen)
    jpeg_first = sum(end[0][0] == "compress_jpeg" for end in ends)
    assert_share(jpeg_first, DRAWS, 0.5)
    sincs = [step for end in ends for step in end if step[0] == "blur"]
    assert_share(len(sincs), DRAWS, 0.8)
    assert {step[1] for step in sincs} == {"sinc_kernel"}
    assert_fills([step[3] for step in sincs], math.pi / 3, math.pi)


def assert_stage(published, base, seen):
    """A stage's chances and ranges, over many images."""
    kinds = defaultdict(list)
    for steps in seen:
        names = [step[0].replace("add_gaussian", "add").replace("add_poisson", "add") for step in steps]
        assert [n for n in names if n != "blur"] == ["resize", "add_noise", "compress_jpeg"]
        assert "blur" not in names[1:]
        for step in steps:
            kinds[step[0]].append(step[1:])
    assert_blurs(published, kinds["blur"], len(seen))
    factors = [size[0] / base for size, _, _ in kinds["resize"]]
    ups, downs = [f for f in factors if f > 1], [f for f in factors if f < 1]
    for found, expected in zip((ups, downs), published.resize, strict=False):
        # A factor next to 1 is rounded down to what is kept, or to one pixel less.
        assert abs(len(found) / len(seen) - expected) <= 4 * math.sqrt(0.25 / len(seen)) + 2 / base
    assert_fills(ups, 1.0, published.up)
    assert published.down - 1 / base <= min(downs) <= published.down + 0.02
    for mode in ("area", "bilinear", "bicubic"):
        assert_share(sum(used == mode for _, used, _ in kinds["resize"]), len(seen), 1 / 3)
    gaussian, poisson = kinds["add_gaussian_noise"], kinds["add_poisson_noise"]
    assert_share(len(gaussian), len(seen), 0.5)
    assert_fills([sigma for sigma, _ in gaussian], *published.gaussian)
    assert_fills([strength for strength, _ in poisson], *published.poisson)
    assert_share(sum(gray for _, (_, gray) in gaussian + poisson), len(seen), 0.4)
    qualities = [quality for (quality,) in kinds["compress_jpeg"]]
    assert (min(qualities), max(qualities)) == published.jpeg
    assert_fills(qualities, *published.jpeg)


def assert_blurs(published, blurs, count):
    """How often there is a blur, and which kernels it has."""
    if published.blur == 1:
        assert len(blurs) == count
    assert_share(len(blurs), count, published.blur)
    sizes = [kernel[1] for kernel in blurs]
    assert set(sizes) == set(range(7, 22, 2))
    for size in range(7, 22, 2):
        assert_share(sizes.count(size), len(sizes), 1 / 8)
    sincs = [kernel for kernel in blurs if kernel[0] == "sinc_kernel"]
    assert_share(len(sincs), len(blurs), 0.1)
    for _, size, cutoff in sincs:
        assert math.pi / (3 if size < 13 else 5) <= cutoff < math.pi
    shaped = [kernel for kernel in blurs if kernel[0] != "sinc_kernel"]
    counts = []
    for name in KERNELS[:3]:
        for turned in (False, True):
            counts.append(sum(k[0] == name and (k[2][0] != k[2][1]) is turned for k in shaped))
    for found, expected in zip(counts, _SHAPES, strict=True):
        assert_share(found, len(shaped), expected)
    assert_fills([sigma for kernel in shaped for sigma in set(kernel[2])], *published.sigma)
    angles = [kernel[-1] for kernel in shaped if kernel[2][0] != kernel[2][1]]
    assert_fills(angles, -math.pi, math.pi)
    assert all(kernel[-1] == 0 for kernel in shaped if kernel[2][0] == kernel[2][1])
    for name, (low, high) in (
        ("generalized_gaussian_kernel", published.generalized),
        ("plateau_kernel", published.plateau),
    ):
        betas = [kernel[3] for kernel in shaped if kernel[0] == name]
        assert_share(sum(beta < 1 for beta in betas), len(betas), 0.5 if low < 1 else 0)
        assert low <= min(betas) and high - 0.15 * (high - 1) <= max(betas) <= high


def test_compressed_is_a_camera_behind_one_jpeg_that_shows(chain_of):
    """Every image is blurred, shrunk once and compressed at its final size, half of them sharpened before."""
    config = preset_config("compressed")
    chains = [chain_of(config, seed, (SIDE, SIDE)) for seed in range(DRAWS)]
    by_name = defaultdict(list)
    for chain in chains:
        names = [step[0] for step in chain]
        assert names[0] == "blur" and names[-1] == "round_to_8_bit" and names.count("compress_jpeg") == 1
        jpeg = names.index("compress_jpeg")
        sizes = [step[1] for step in chain[:jpeg] if step[0] == "resize"]
        assert sizes[-1] == (SIDE // 4, SIDE // 4) and "sharpen" not in names[jpeg:]
        for step in chain:
            by_name[step[0]].append(step[1:])
    assert_fills([quality for (quality,) in by_name["compress_jpeg"]], 25, 92)
    assert_share(len(by_name["sharpen"]), DRAWS, 0.5)
    assert_fills([sigma for kernel in by_name["blur"] for sigma in set(kernel[2])], 0.2, 3.0)
    assert {step[0] for chain in chains for step in chain if "noise" in step[0]} == {
        "add_gaussian_noise",
        "add_poisson_noise",
    }
    assert max(sigma for sigma, _ in by_name["add_gaussian_noise"]) <= 3


# Our own presets, as docs/training.md describes them: a blur, then shrinking, little noise, perhaps a JPEG.
OURS = {
    "camera": SimpleNamespace(
        sizes=range(7, 22, 2), sigma=(0.2, 1.6), turned=0.4, modes=("area", "bicubic"), antialias=True,
        gaussian=(0, 3), poisson=(0, 0.25), jpeg=0.5, quality=(85, 100), sharpened=0.0, soft=(0.0, 0, 0),
    ),
    "real": SimpleNamespace(
        sizes=range(27, 34, 2), sigma=(2.0, 4.6), turned=0.5, modes=("bilinear", "bicubic"), antialias=False,
        gaussian=(0, 2.5), poisson=(0, 0.2), jpeg=0.4, quality=(80, 100), sharpened=0.85,
        soft=(0.9, 0.5, 1.3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("preset", OURS)
def test_our_presets_are_a_blur_a_shrinking_and_what_a_camera_adds(chain_of, preset):
    config, ours = preset_config(preset), OURS[preset]
    by_name = defaultdict(list)
    for seed in range(DRAWS):
        chain = chain_of(config, seed, (SIDE, SIDE))
        names = [step[0] for step in chain]
        assert names[:3] == ["blur", "resize", "resize"] and names[-1] == "round_to_8_bit"
        assert names.count("blur") == 1 and names.count("resize") == 3 and "noise" in names[3]
        assert chain[1][1:] == ((SIDE, SIDE), "bicubic", True)
        assert chain[2][1] == (SIDE // 4, SIDE // 4) and chain[2][3] is ours.antialias
        by_name["shrinking"].append(chain[2][2])
        for step in chain:
            by_name[step[0]].append(step[1:])
    sizes, kernels = [kernel[1] for kernel in by_name["blur"]], by_name["blur"]
    assert {kernel[0] for kernel in kernels} == {"gaussian_kernel"} and set(sizes) == set(ours.sizes)
    assert_fills([sigma for kernel in kernels for sigma in set(kernel[2])], *ours.sigma)
    assert_share(sum(kernel[2][0] != kernel[2][1] for kernel in kernels), DRAWS, ours.turned)
    for mode in ours.modes:
        assert_share(by_name["shrinking"].count(mode), DRAWS, 0.5)
    assert_share(len(by_name["add_gaussian_noise"]), DRAWS, 0.5)
    assert_fills([sigma for sigma, _ in by_name["add_gaussian_noise"]], *ours.gaussian)
    assert_fills([strength for strength, _ in by_name["add_poisson_noise"]], *ours.poisson)
    assert_share(len(by_name["compress_jpeg"]), DRAWS, ours.jpeg)
    assert_fills([quality for (quality,) in by_name["compress_jpeg"]], *ours.quality)
    assert_share(len(by_name["sharpen"]), DRAWS, ours.sharpened)
    if ours.sharpened:
        assert_fills([amount for amount, _ in by_name["sharpen"]], 0.4, 1.6)
        assert_fills([sigma for _, sigma in by_name["sharpen"]], 0.8, 1.8)
    share, *sigma = ours.soft  # the blur of the original itself
    assert config.original.probability == share
    if share:
        assert (config.original.kernel_size, config.original.sigma) == ((9, 9), tuple(sigma))
        assert config.original.kernel_probabilities[0] == 1 and config.original.sinc_probability == 0


def test_bicubic_is_one_resize_and_nothing_else(chain_of):
    for seed in range(20):
        chain = chain_of(preset_config("bicubic"), seed)
        whole, small = ("resize", (80, 120), "bicubic", True), ("resize", (20, 30), "bicubic", True)
        assert chain == [whole, small, small, ("round_to_8_bit",)]


@pytest.mark.parametrize("preset, share, low, high", [("real", 0.9, 0.5, 1.3), ("compressed", 0.5, 0.3, 1.3)])
def test_the_originals_of_pairs_are_softened_by_a_round_blur_of_their_own(chain_of, preset, share, low, high):
    """A pair has a blur more than the LR image alone, before all else, as often as the preset says."""
    config, originals = preset_config(preset), []
    for seed in range(DRAWS):
        blurs = [step for step in chain_of(config, seed, make=degrade_pair) if step[0] == "blur"]
        originals += blurs[:-1]
    assert_share(len(originals), DRAWS, share)
    assert {(kernel, size) for _, kernel, size, *_ in originals} == {("gaussian_kernel", 9)}
    assert all(sigmas[0] == sigmas[1] for *_, sigmas, _ in originals)
    assert_fills([sigmas[0] for *_, sigmas, _ in originals], low, high)
