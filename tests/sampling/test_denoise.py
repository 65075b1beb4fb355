"""The denoising loop: guidance against full passes, the adjustment, tiles, and images that do not mix."""

import copy

import pytest
import torch

from clearsr.config.base import build_config
from clearsr.config.sampling import SamplingConfig
from clearsr.models.latent_lr_embedding import LatentLR
from clearsr.models.prediction import network_input, predicted_z_0
from clearsr.pipeline.store import DiskTensor
from clearsr.sampling import guidance
from clearsr.sampling.denoise import denoise
from clearsr.sampling.guidance import Conditioning, Tiles, guided_z_0
from clearsr.sampling.latent_space_adjustment import step_strengths
from clearsr.sampling.noise import Bands, draw_noise
from clearsr.sampling.schedule import make_solver
from clearsr.seeds import make_generator
from clearsr.tiling import Window, tile_windows

CPU = torch.device("cpu")


def _config(**values):
    return build_config(SamplingConfig, {"steps": 3, "lsa": {"preset": "off"}, **values})


def _generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.fixture(scope="module")
def conditioning(normal):
    def make(batch=2, height=8, width=12, seed=0, negative=None):
        mean = normal(batch, 8, height, width, seed=seed)
        std = normal(batch, 8, height, width, seed=seed + 1).abs() + 0.1
        return Conditioning(LatentLR(mean, std), normal(batch, 1, 16, seed=seed + 2), negative)

    return make


@pytest.fixture(params=["epsilon", "v_prediction", "lr_anchored"])
def predicting(request, make_network):
    """A network for each meaning of the output."""
    return make_network(prediction=request.param)


def _full_pass(network, conditioning, z_t, t, text, prompt):
    """One branch of guidance with nothing shared: `text` in DPM and encoder, `prompt` in the decoder."""
    batch = len(z_t)
    timestep = t.expand(batch)
    alpha_bar = network.alpha_bars[timestep].view(-1, 1, 1, 1)
    embedding = conditioning.embedding
    latent = network_input(network.config.prediction, z_t, alpha_bar, embedding)
    text = text.expand(batch, -1, -1)
    structure = network.structure_features(embedding.mean)
    control = network.control_signals(embedding.mean, timestep, text, structure)
    encoded = network.unet_encode(latent, timestep, text)
    return network.unet_decode(encoded, control, prompt.expand(batch, -1, -1))


def _read(network, conditioning, output, z_t, t):
    alpha_bar = network.alpha_bars[t]
    return predicted_z_0(network.config.prediction, output, z_t, alpha_bar, conditioning.embedding)


@torch.no_grad()
def test_guidance_with_the_shared_encoder_equals_two_full_passes(predicting, conditioning, normal):
    given, z_t, t = conditioning(), normal(2, 8, 8, 12, seed=9), torch.tensor(600)
    null = predicting.null_prompt
    conditional = _full_pass(predicting, given, z_t, t, null, given.prompt)
    unconditional = _full_pass(predicting, given, z_t, t, null, null)
    expected = unconditional + 4.0 * (conditional - unconditional)
    tile = Tiles.cut(predicting, given, [Window(0, 0, 8, 12)], keep=True)
    z_0 = guided_z_0(predicting, tile, z_t, t, _config(guidance_scale=4.0))
    torch.testing.assert_close(z_0, _read(predicting, given, expected, z_t, t))
    unguided = guided_z_0(predicting, tile, z_t, t, _config())
    torch.testing.assert_close(unguided, _read(predicting, given, conditional, z_t, t))
    assert not torch.allclose(z_0, unguided, atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize(("given", "taken"), [(250.6, 251), (250.4, 250), (998.9, 999)])
def test_a_timestep_between_two_is_the_nearest(network, conditioning, normal, given, taken):
    """As some of diffusers' schedulers have it."""
    z_t = normal(2, 8, 8, 12, seed=3)
    tile = Tiles(conditioning(), None)
    between, whole = (guided_z_0(network, tile, z_t, torch.tensor(t), _config()) for t in (given, taken))
    assert torch.equal(between, whole)


@torch.no_grad()
def test_a_negative_prompt_goes_through_its_own_whole_pass(network, conditioning, normal):
    negative = normal(1, 5, 16, seed=4)
    given, z_t, t = conditioning(negative=negative), normal(2, 8, 8, 12, seed=9), torch.tensor(600)
    conditional = _full_pass(network, given, z_t, t, network.null_prompt, given.prompt)
    unconditional = _full_pass(network, given, z_t, t, negative, negative)
    expected = unconditional + 2.5 * (conditional - unconditional)
    tile = Tiles.cut(network, given, [Window(0, 0, 8, 12)], keep=False)
    text, z_lr = network.null_prompt.expand(2, -1, -1), given.embedding.mean
    known = network.control_signals(z_lr, t.expand(2), text, network.structure_features(z_lr))
    for control in (None, known):
        z_0 = guided_z_0(network, tile, z_t, t, _config(guidance_scale=2.5), control)
        torch.testing.assert_close(z_0, _read(network, given, expected, z_t, t))


@torch.no_grad()
def test_one_branch_is_the_training_forward(network, conditioning, normal):
    """Training and sampling share the network's halves: same inputs, same output."""
    given, z_t, t = conditioning(), normal(2, 8, 8, 12, seed=9), torch.tensor(300)
    alpha_bar = network.alpha_bars[t]
    latent = network_input("lr_anchored", z_t, alpha_bar, given.embedding)
    output = network(latent, t.expand(2), given.embedding.mean, given.prompt)
    tile = Tiles.cut(network, given, [Window(0, 0, 8, 12)], keep=True)
    z_0 = guided_z_0(network, tile, z_t, t, _config())
    torch.testing.assert_close(z_0, _read(network, given, output, z_t, t))


@pytest.mark.parametrize("scheduler", ["ddpm", "ddim", "dpm++", "unipc", "euler"])
@pytest.mark.parametrize("tile", [64, 32])
def test_a_batch_of_two_is_two_singles_in_any_order(network, conditioning, scheduler, tile):
    width = 40 if tile == 32 else 12
    given = conditioning(width=width)
    config = _config(scheduler=scheduler, guidance_scale=2, tile={"size": tile, "overlap": 8})
    together = denoise(network, given, config, _generators(1, 2))
    for row, seed in ((0, 1), (1, 2)):
        alone = _rows(given, [row])
        single = denoise(network, alone, config, _generators(seed))
        torch.testing.assert_close(together[row : row + 1], single, atol=1e-4, rtol=1e-4)
    swapped = denoise(network, _rows(given, [1, 0]), config, _generators(2, 1))
    torch.testing.assert_close(together, swapped.flip(0), atol=1e-4, rtol=1e-4)


def _rows(given, rows):
    counts = None if given.counts is None else given.counts[rows]
    embedding = given.embedding.map(lambda part: part[rows])
    return Conditioning(embedding, given.prompt[rows], given.negative, counts)


@pytest.mark.parametrize("scheduler", ["ddpm", "ddim", "dpm++", "unipc", "euler"])
@pytest.mark.parametrize("start", ["lr", "noise"])
def test_the_seed_decides_and_the_global_generator_does_not(network, conditioning, scheduler, start):
    given, config = conditioning(batch=1), _config(scheduler=scheduler, start=start)
    first = denoise(network, given, config, _generators(1))
    torch.manual_seed(123)
    assert torch.equal(first, denoise(network, given, config, _generators(1)))
    other = denoise(network, given, config, _generators(2))
    assert first.isfinite().all() and not torch.allclose(first, other, atol=1e-3)


@pytest.fixture
def oracle(monkeypatch, normal):
    """The network is replaced by one that knows the true latent."""

    def install(z_0):
        monkeypatch.setattr(guidance, "guided_z_0", lambda *_: z_0)
        return z_0

    return install


@pytest.mark.parametrize("scheduler", ["ddpm", "ddim", "dpm++", "unipc", "euler"])
@pytest.mark.parametrize("target", ["step", "z_0"])
def test_adjusted_result_of_an_oracle_is_equation_four(
    network, conditioning, oracle, normal, scheduler, target
):
    given, z_0 = conditioning(), oracle(normal(2, 8, 8, 12, seed=7))
    z_lr = given.embedding.mean
    plain = denoise(network, given, _config(scheduler=scheduler), _generators(0, 1))
    torch.testing.assert_close(plain, z_0, atol=1e-5, rtol=1e-5)
    lsa = {"alpha": 0, "beta": 0.1, "lla_start": 0.7, "target": target}
    config = _config(scheduler=scheduler, steps=5, lsa=lsa)
    beta = step_strengths(4, 5, config.lsa)[1]
    adjusted = denoise(network, given, config, _generators(0, 1))
    # The first of the two late steps only moves z_t, which an oracle's last step does not look at.
    torch.testing.assert_close(adjusted, (1 + beta) * z_0 - beta * z_lr, atol=1e-4, rtol=1e-4)


def test_each_step_is_predicted_stepped_and_adjusted(network, conditioning):
    """The whole loop written out for DDIM, with ELA in the first step and LLA in the last two."""
    given = conditioning(batch=1)
    lsa = {"alpha": 0.2, "beta": 0.1, "ela_end": 0.25, "lla_start": 0.5}
    config = _config(scheduler="ddim", steps=4, lsa=lsa, guidance_scale=2, noise_scale=0.7)
    z_lr, solver = given.embedding.mean, make_solver(config, CPU)
    a = network.alpha_bars[solver.timesteps].tolist() + [1.0]
    noise = 0.7 * torch.randn(8, 8, 12, generator=_generators(5)[0])[None]
    z_t = a[0] ** 0.5 * z_lr + (1 - a[0]) ** 0.5 * noise
    tile = Tiles.cut(network, given, [Window(0, 0, 8, 12)], keep=True)
    for i, t in enumerate(solver.timesteps):
        with torch.no_grad():
            z_0 = guided_z_0(network, tile, z_t, t, config)
        epsilon = (z_t - a[i] ** 0.5 * z_0) / (1 - a[i]) ** 0.5
        z_t = a[i + 1] ** 0.5 * z_0 + (1 - a[i + 1]) ** 0.5 * epsilon
        alpha, beta = step_strengths(i, 4, config.lsa)
        assert (alpha > 0, beta > 0) == (i == 0, i >= 2)
        z_t = (1 - alpha) * z_t + alpha * z_lr
        z_t = (1 + beta) * z_t - beta * z_lr
    torch.testing.assert_close(denoise(network, given, config, _generators(5)), z_t, atol=1e-3, rtol=1e-3)


def test_pull_brings_the_result_nearer_to_x_lr_and_push_away(network, conditioning):
    given = conditioning()
    distances = []
    for lsa in ({"alpha": 0.2, "beta": 0, "ela_end": 1}, {"preset": "off"}, {"alpha": 0, "beta": 0.2}):
        result = denoise(network, given, _config(steps=6, lsa=lsa), _generators(0, 1))
        distances.append(float((result - given.embedding.mean).abs().mean()))
    assert distances == sorted(distances) and distances[0] < distances[2]


def test_a_network_that_says_nothing_leaves_x_lr(make_network, conditioning):
    """With f = 0 one step without noise is x_lr, whatever LSA does."""
    network = make_network(prediction="lr_anchored")
    for parameter in network.unet.conv_out.parameters():
        parameter.zero_()
    given = conditioning(batch=1)
    config = _config(steps=1, scheduler="ddim", start_timestep=300, noise_scale=0, lsa={"alpha": 0.05})
    torch.testing.assert_close(denoise(network, given, config, _generators(0)), given.embedding.mean)


def test_noise_scale_zero_leaves_nothing_to_the_seed(network, conditioning):
    given, config = conditioning(batch=1), _config(scheduler="ddim", noise_scale=0)
    assert torch.equal(*(denoise(network, given, config, _generators(seed)) for seed in (1, 2)))


def test_a_later_start_stays_nearer_to_x_lr(network, conditioning):
    given = conditioning()
    distances = []
    for start in (20, 500, 999):
        config = _config(scheduler="ddim", start_timestep=start)
        result = denoise(network, given, config, _generators(0, 1))
        distances.append(float((result - given.embedding.mean).abs().mean()))
    assert distances[0] < min(distances[1:])


def test_one_tile_is_the_untiled_result(network, conditioning):
    given = conditioning(height=32, width=32)
    results = [
        denoise(network, given, _config(tile={"size": size, "overlap": 16}), _generators(0, 1))
        for size in (32, 64)
    ]
    assert torch.equal(*results)


def test_result_does_not_depend_on_the_order_of_tiles(network, conditioning, monkeypatch):
    given, config = conditioning(batch=1, width=48), _config(steps=2, tile={"size": 32, "overlap": 16})
    forward = denoise(network, given, config, _generators(0))
    monkeypatch.setattr(guidance, "tile_windows", lambda *args: tile_windows(*args)[::-1])
    torch.testing.assert_close(denoise(network, given, config, _generators(0)), forward, atol=1e-5, rtol=1e-5)


def _calls(module):
    """A list that grows by one at each call of the module."""
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_many_tiles_are_as_few(make_network, conditioning, monkeypatch):
    """With more tiles than the SPM's features are kept for, it runs again: same result."""
    network = make_network()
    given, config = conditioning(batch=1, width=48), _config(steps=2, tile={"size": 32, "overlap": 0})
    calls = _calls(network.structure_preserving)
    monkeypatch.setattr(guidance, "KEPT_TILES", 2)
    kept = denoise(network, given, config, _generators(0))
    assert len(calls) == 2  # once for each of the two tiles
    monkeypatch.setattr(guidance, "KEPT_TILES", 1)
    assert torch.equal(denoise(network, given, config, _generators(0)), kept)
    assert len(calls) == 2 + 2 * 2


@pytest.mark.parametrize(("scale", "branches"), [(1, 1), (3, 2)])
def test_without_guidance_one_branch_is_decoded(make_network, conditioning, scale, branches):
    network = make_network()
    decoded, encoded = _calls(network.unet.conv_out), _calls(network.unet.mid_block)
    denoise(network, conditioning(), _config(steps=3, guidance_scale=scale), _generators(0, 1))
    assert (len(decoded), len(encoded)) == (3 * branches, 3)


def test_structure_features_are_computed_once_per_image(make_network, conditioning):
    network = make_network()
    calls = _calls(network.structure_preserving)
    denoise(network, conditioning(), _config(steps=4, guidance_scale=2), _generators(0, 1))
    assert len(calls) == 1


def test_on_step_hears_of_every_step_and_may_stop(network, conditioning):
    given, heard = conditioning(), []
    denoise(network, given, _config(steps=4), _generators(0, 1), lambda *step: heard.append(step))
    assert [step[:2] for step in heard] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert all(step[2].shape == (2, 8, 8, 12) for step in heard)

    def stop(done, steps, z_0):
        heard.append(done)
        if done == 2:
            raise KeyboardInterrupt

    heard.clear()
    with pytest.raises(KeyboardInterrupt):
        denoise(network, given, _config(steps=4), _generators(0, 1), stop)
    assert heard == [1, 2]


def test_without_structure_preserving_module(make_network, conditioning):
    network = make_network(control={"structure_preserving": False})
    result = denoise(network, conditioning(), _config(), _generators(0, 1))
    assert result.shape == (2, 8, 8, 12) and result.isfinite().all()


def test_noise_of_an_image_is_its_generators_alone(normal):
    like = torch.zeros(3, 2, 4, 5, dtype=torch.float64)
    noise = draw_noise(like, _generators(3, 1, 3))
    assert noise.dtype == torch.float64 and torch.equal(noise[0], noise[2])
    expected = torch.randn(2, 4, 5, generator=_generators(1)[0])
    assert torch.equal(noise[1], expected.double())


def test_noise_of_a_large_image_is_its_own_in_every_band(network, conditioning, monkeypatch):
    """Rows below the first band have noise of their own, which the image's generator alone decides."""
    monkeypatch.setattr("clearsr.sampling.noise.BAND_ROWS", 4)
    monkeypatch.setattr(guidance, "guided_z_0", lambda network, tile, z_t, *_: z_t)
    given = conditioning(batch=2, height=8)
    given = given._replace(embedding=given.embedding.map(torch.zeros_like))
    config = _config(steps=1, scheduler="ddim", start="noise")
    noise = denoise(network, given, config, _generators(3, 3))
    assert torch.equal(noise[0], noise[1])
    lower = torch.randn(8, 4, 12, generator=make_generator("band", 3, 4))  # the seed, and the first row
    torch.testing.assert_close(noise[0, :, 4:], lower)
    assert not torch.allclose(noise[0, :, :4], noise[0, :, 4:], atol=1e-2)
    other = denoise(network, given, config, _generators(3, 4))
    assert torch.equal(other[0], noise[0]) and not torch.allclose(other[1], noise[1], atol=1e-2)


@pytest.mark.parametrize(
    ("scheduler", "target"),
    [("ddpm", "step"), ("ddim", "step"), ("dpm++", "z_0"), ("unipc", "step"), ("euler", "step")],
)
def test_latents_on_disk_come_out_as_in_memory_and_none_stays_there(
    network, conditioning, tmp_path, monkeypatch, scheduler, target
):
    monkeypatch.setattr("clearsr.sampling.noise.BAND_ROWS", 12)
    step, remembered = Bands.map, []

    def watched(bands, apply, *grids):
        results = step(bands, apply, *grids)
        remembered.extend((*grids, *results))
        return results

    given = conditioning(batch=1, height=40, width=48)
    lsa = {"alpha": 0.1, "beta": 0.1, "target": target}
    config = _config(scheduler=scheduler, steps=4, lsa=lsa, tile={"size": 32, "overlap": 8})
    expected = denoise(network, given, config, _generators(5))
    whole = DiskTensor(given.embedding.mean.shape, tmp_path, CPU)
    on_disk = given._replace(embedding=given.embedding.map(whole.holding))
    tiles = []
    monkeypatch.setattr(Bands, "map", watched)
    result = denoise(network, on_disk, config, _generators(5), on_tile=lambda: tiles.append(1))
    assert isinstance(result, DiskTensor) and len(tiles) == 4 * 4
    assert remembered and all(isinstance(grid, DiskTensor) for grid in remembered)
    # UniPC grows what sums of another order round differently.
    torch.testing.assert_close(result.read(), expected, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def exact_network(make_network):
    """In double precision, where batches of another size round away from each other by next to nothing."""
    return make_network().double()


def _exactly(given, folder=None):
    """The same in double precision; with a folder, x_lr on disk."""
    embedding = given.embedding.map(torch.Tensor.double)
    if folder is not None:
        embedding = embedding.map(DiskTensor(embedding.mean.shape, folder, CPU, torch.float64).holding)
    negative = None if given.negative is None else given.negative.double()
    return Conditioning(embedding, given.prompt.double(), negative, given.counts)


@pytest.mark.parametrize(
    ("changes", "is_kept", "is_on_disk", "at_once"),
    [
        ({"guidance_scale": 2.5, "scheduler": "dpm++"}, True, False, 4),
        ({"guidance_scale": 2.5, "negative": True, "scheduler": "euler"}, False, False, 16),
        ({"guidance_scale": 2.5, "lsa": {"alpha": 0.1, "beta": 0.1, "target": "z_0"}}, True, True, 2),
        ({"scheduler": "ddpm"}, False, True, 4),
        ({"guidance_scale": 2.5, "counts": ((True, False, False), (True, True, True))}, True, False, 3),
    ],
    ids=str,
)
def test_tiles_at_once_are_tiles_one_by_one(
    exact_network, conditioning, normal, tmp_path, monkeypatch, changes, is_kept, is_on_disk, at_once
):
    """Two images with six tiles each, and each of the images alone: all the same."""
    monkeypatch.setattr("clearsr.sampling.noise.BAND_ROWS", 16)
    monkeypatch.setattr(guidance, "KEPT_TILES", 32 if is_kept else 0)
    negative = normal(1, 5, 16, seed=4) if changes.get("negative") else None
    given = conditioning(height=40, width=72, negative=negative)
    if "counts" in changes:
        given = given._replace(prompt=normal(2, 3, 16, seed=5), counts=torch.tensor(changes["counts"]))
    settings = {key: value for key, value in changes.items() if key not in ("negative", "counts")}
    config = _config(**{"steps": 2, "tile": {"size": 32, "overlap": 8}, **settings})
    expected = denoise(exact_network, _exactly(given), config, _generators(1, 2))
    passes = []
    network = copy.copy(exact_network)  # its parts are the same; the method that counts is its own
    network.unet_encode = lambda *args: passes.append(len(args[0])) or exact_network.unet_encode(*args)
    for rows in ([0, 1], [1]):
        passes.clear()
        folder = tmp_path if is_on_disk else None
        seeds = [row + 1 for row in rows]
        result = denoise(
            network, _exactly(_rows(given, rows), folder), config, _generators(*seeds), tiles_at_once=at_once
        )
        result = result.read() if is_on_disk else result
        assert float((result - expected[rows]).abs().max()) < 1e-9
        assert max(passes) == len(rows) * min(at_once, 6)
        assert sum(passes) == len(rows) * 6 * 2 * (2 if negative is not None else 1)


def test_each_tile_is_counted_and_has_its_structure_computed_once(make_network, conditioning):
    network, rows, heard = make_network(), [], []
    network.structure_preserving.register_forward_hook(lambda _, given, __: rows.append(len(given[0])))
    config = _config(steps=3, tile={"size": 32, "overlap": 8})
    given = conditioning(height=40, width=72)
    denoise(network, given, config, _generators(0, 1), on_tile=lambda: heard.append(1), tiles_at_once=4)
    assert rows == [2 * 4, 2 * 2] and len(heard) == 3 * 6
