"""Stable Diffusion's VAE in windows against diffusers' whole pass, and the memory that each kind says."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch.utils._python_dispatch import TorchDispatchMode

from clearsr.config.model import AutoencoderConfig
from clearsr.models.latent_lr_embedding import LatentLREmbedding
from clearsr.models.lora import VAE_ENCODER_TARGETS, add_lora, lora_enabled
from clearsr.models.patch_autoencoder import PatchAutoencoderKL, PatchEncoder
from clearsr.models.vae import decoder_layers, encoder_layers
from clearsr.models.windowed_layers import FeatureMap, SelfAttention, attend, count_windows, run_in_windows
from clearsr.pipeline.store import DiskTensor
from clearsr.tiling import Window, pieces

CPU = torch.device("cpu")
CONFIGS = {
    "as Stable Diffusion": {},
    "as FLUX": {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False},
    "no attention": {"mid_block_add_attention": False, "norm_num_groups": 2},
    "attention at a level": {
        "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
        "up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
        "block_out_channels": (8, 16),
    },
    "one group, deep": {"norm_num_groups": 1, "layers_per_block": 3, "block_out_channels": (4, 4, 12, 8)},
}


def _make_vae(dtype=torch.float64, **changes):
    settings = {
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": (8, 16, 16, 24),
        "norm_num_groups": 4,
        "latent_channels": 4,
    }
    vae = AutoencoderKL(**{**settings, **changes}).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in vae.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return LatentLREmbedding(vae).to(dtype)


@pytest.fixture
def on_disk(tmp_path):
    return lambda shape, dtype: DiskTensor(shape, tmp_path, CPU, dtype)


def _both(latents, make_picture, height, width, piece, **arguments):
    """x_lr and its decoding, by the whole and in windows: pairs of tensors."""
    pixels = (make_picture(height, width)[None] * 2 - 1).to(latents.vae.dtype)
    whole, windows = latents.embed_lr(pixels), latents.embed_lr(pixels, piece, **arguments)
    decoded, again = latents.decode(whole.mean), latents.decode(whole.mean, piece, **arguments)
    return [(windows.mean, whole.mean), (windows.std, whole.std), (again, decoded)]


@torch.no_grad()
@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_windows_give_what_the_whole_gives(changes, make_picture):
    for one, other in _both(_make_vae(**changes), make_picture, 72, 104, 40):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize(
    ("size", "piece"),
    [((8, 8), 4), ((16, 24), 4), ((8, 200), 33), ((120, 16), 33), ((64, 136), 64), ((64, 136), 135)],
)
def test_windows_of_any_size_for_images_of_any_size(size, piece, make_picture):
    """Down to a single cell, borders anywhere, and images smaller than a window in one direction."""
    for one, other in _both(_make_vae(), make_picture, *size, piece):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_in_fp32_and_from_disk(layout, make_picture, on_disk):
    latents = _make_vae(torch.float32).to(memory_format=layout)
    for one, other in _both(latents, make_picture, 72, 136, 48, new_map=on_disk):
        torch.testing.assert_close(one, other, atol=1e-5 * float(other.abs().max()), rtol=0)


@torch.no_grad()
def test_in_16_bits_it_is_as_near_to_the_truth_as_the_whole(make_picture, normal):
    latents, z = _make_vae(torch.float32), normal(1, 4, 8, 12)
    pixels = make_picture(64, 96)[None] * 2 - 1
    for run in (lambda piece: latents.embed_lr(pixels, piece).mean, lambda piece: latents.decode(z, piece)):
        truth = run(1024)
        with torch.autocast("cpu", torch.bfloat16):
            whole, windows = run(1024), run(40)
        assert windows.dtype == whole.dtype == torch.bfloat16
        error, usual = ((v.float() - truth).square().mean().sqrt() for v in (windows, whole))
        assert 0 < error <= 1.2 * usual


@torch.no_grad()
def test_what_fits_a_piece_is_done_whole_and_nothing_larger(normal, make_picture):
    latents, whole = _make_vae(), []
    for name in ("encode", "decode"):
        method = getattr(latents.vae, name)
        setattr(latents.vae, name, lambda x, do=method: whole.append(tuple(x.shape[2:])) or do(x))
    for side in (40, 48):
        latents.embed_lr(make_picture(32, side)[None].double(), 40)
        latents.decode(normal(1, 4, side // 8, 4).double(), 40)
    assert whole == [(32, 40), (5, 4)]


@torch.no_grad()
@pytest.mark.parametrize("log_variance", [-45.0, -29.0, 19.0, 25.0])
def test_deviations_are_kept_within_diffusers_bounds(log_variance, make_picture):
    latents = _make_vae()
    latents.vae.quant_conv.weight[4:] = 0
    latents.vae.quant_conv.bias[4:] = log_variance
    _, (windows, whole), _ = _both(latents, make_picture, 48, 64, 40)
    torch.testing.assert_close(windows, whole, atol=0, rtol=1e-9)
    expected = latents.scaling_factor * torch.tensor(min(max(log_variance, -30.0), 20.0) / 2).double().exp()
    torch.testing.assert_close(windows, expected.expand_as(windows), atol=0, rtol=1e-6)


@torch.no_grad()
def test_the_encoders_lora_is_on(make_picture):
    latents = _make_vae()
    before = _both(latents, make_picture, 64, 96, 40)[0][0]
    add_lora(latents.vae, VAE_ENCODER_TARGETS, 2)
    for name, parameter in latents.vae.named_parameters():
        if "lora_" in name:
            parameter.data = torch.full_like(parameter, 0.02, dtype=torch.float64)
    (windows, whole), *_ = _both(latents, make_picture, 64, 96, 40)
    torch.testing.assert_close(windows, whole, atol=1e-9, rtol=1e-9)
    assert (windows - before).abs().max() > 1e-3
    pixels = (make_picture(64, 96)[None] * 2 - 1).double()
    with lora_enabled(latents.vae, False):
        both = latents.embed_in_windows(pixels, 40, CPU, torch_map)
    torch.testing.assert_close(both[:, :4], whole, atol=1e-9, rtol=1e-9)


@torch.no_grad()
def test_an_image_does_not_depend_on_its_batch(normal):
    latents = _make_vae()
    batch = normal(3, 4, 9, 12).double()
    together = latents.decode(batch, 32)
    for image, alone in zip(together, batch.split(1), strict=True):
        torch.testing.assert_close(image[None], latents.decode(alone, 32), atol=1e-9, rtol=1e-9)


class _LargestTensor(TorchDispatchMode):
    """How many bytes the largest result of any operation has."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        results = result if isinstance(result, tuple | list) else [result]
        self.bytes = max([self.bytes, *(r.nbytes for r in results if isinstance(r, torch.Tensor))])
        return result


@torch.no_grad()
@pytest.mark.parametrize("piece", [48, 64])
def test_no_tensor_is_larger_than_a_piece_makes_it(piece, make_picture, on_disk):
    """Counted, not timed: with the maps on disk, nothing in memory grows with the image."""
    latents = _make_vae(torch.float32)
    allowed = 4 * piece**2 * 16  # the widest map of a piece has 16 channels at the finest level
    for height, width in ((104, 136), (136, 264)):
        pixels = on_disk((1, 3, height, width), torch.float32)
        pixels[..., :, :] = make_picture(height, width)[None] * 2 - 1
        with _LargestTensor() as largest:
            both = latents.embed_in_windows(pixels, piece, CPU, on_disk)
        assert allowed / 4 < largest.bytes <= allowed
        z = pixels.holding(both[..., :, :][:, :4])
        with _LargestTensor() as largest:
            latents.decode_in_windows(z, piece, CPU, on_disk)
        assert allowed / 4 < largest.bytes <= allowed
        with _LargestTensor() as largest:
            latents.decode(z.read())
        assert largest.bytes >= 4 * 16 * height * width


@torch.no_grad()
@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_every_layer_knows_the_most_channels_that_it_reads_or_writes(changes):
    """From which follows how large its windows may be."""
    latents = _make_vae(**changes)

    def recorded(function, seen):
        def apply(values):
            result = function(values)
            seen.append(max(values.shape[1], result.shape[1]))
            return result

        return apply

    z = torch.zeros(1, latents.vae.config.latent_channels, 2, 2).double()
    for layers, source in (
        (encoder_layers(latents.vae, torch.nn.Identity()), torch.zeros(1, 3, 16, 16).double()),
        (decoder_layers(latents.vae, torch.nn.Identity()), z),
    ):
        seen, watched = [[] for _ in layers], []
        for layer, found in zip(layers, seen, strict=True):
            if isinstance(layer, SelfAttention):
                found.append(layer.attn.to_q.in_features)
                watched.append(layer)
            else:
                shortcut = layer.shortcut and recorded(layer.shortcut, found)
                watched.append(
                    dataclasses.replace(layer, apply=recorded(layer.apply, found), shortcut=shortcut)
                )
        run_in_windows(watched, source, 10**6, CPU, torch_map)
        assert [layer.channels for layer in layers] == [max(found) for found in seen]


LEVELS = [(8, 16, 16, 24), (16, 8, 8, 32), (8, 8, 32, 32), (8,)]


def _make_levels(widths):
    kinds = {"down": "DownEncoderBlock2D", "up": "UpDecoderBlock2D"}
    types = {f"{way}_block_types": [kind] * len(widths) for way, kind in kinds.items()}
    return _make_vae(torch.float32, block_out_channels=widths, **types)


@torch.no_grad()
@pytest.mark.parametrize("widths", LEVELS)
def test_the_maps_of_an_image_in_windows_take_no_more_than_is_said(widths, live_maps):
    """Exactly that, where the level below is wider, as Stable Diffusion's is."""
    latents = _make_levels(widths)
    cells = 16 * latents.pixels_per_latent(), 8 * latents.pixels_per_latent()
    encoding, decoding = live_maps(), live_maps()
    latents.embed_in_windows(torch.zeros(1, 3, *cells), 10**4, CPU, encoding)
    latents.decode_in_windows(torch.zeros(1, 4, 16, 8), 10**4, CPU, decoding)
    said = latents.adapter.map_bytes_per_pixel * cells[0] * cells[1]
    most = max(encoding.most, decoding.most)
    if widths[:2] == (8, 16):
        assert most == said
    assert said / 2 < most <= said


def _largest_output(modules, run):
    """Bytes of the largest result that a layer of these modules has while something runs."""
    found = []
    leaves = [leaf for module in modules for leaf in module.modules() if not [*leaf.children()]]
    handles = [leaf.register_forward_hook(lambda *call: found.append(call[2].nbytes)) for leaf in leaves]
    run()
    for handle in handles:
        handle.remove()
    return max(found)


@torch.no_grad()
@pytest.mark.parametrize("widths", LEVELS)
def test_the_largest_activation_is_what_is_said(widths):
    latents = _make_levels(widths)
    fold = latents.pixels_per_latent()
    pixels, z = torch.zeros(1, 3, 2 * fold, 3 * fold), torch.zeros(1, 4, 2, 3)
    most = _largest_output([latents.vae], lambda: (latents.embed_lr(pixels), latents.decode(z)))
    assert most == latents.adapter.bytes_per_pixel * 6 * fold**2
    assert fold == 2 ** (len(widths) - 1)
    adapter = latents.adapter
    assert adapter.encoder_margin is None and adapter.decoder_margin is None
    assert adapter.decoder_overlap is None


OWN = {"encoder_channels": (64, 8), "decoder_channels": (64, 8)}


@torch.no_grad()
@pytest.mark.parametrize("patch", [2, 4])
@pytest.mark.parametrize(
    ("changes", "lr_widths"),
    [
        ({"encoder_channels": (96, 8)}, None),
        ({"decoder_channels": (96, 8)}, None),
        ({}, (96, 8)),
        ({}, (8, 8)),
        ({"overlap_channels": 88, "overlap_layers": 1}, (8, 8)),
    ],
)
def test_the_largest_activation_of_our_own_is_what_is_said(patch, changes, lr_widths):
    """Whichever network has it: encoder, decoder, E' or what joins the decoder's patches."""
    layers = {"encoder_layers": (1, 1), "decoder_layers": (1, 1), "latent_channels": 4}
    vae = PatchAutoencoderKL(AutoencoderConfig(patch_size=patch, **{**OWN, **layers, **changes}))
    e_prime = None if lr_widths is None else PatchEncoder(3, 4, patch, lr_widths, (1, 1))
    latents, fold = LatentLREmbedding(vae, e_prime), 2 * patch
    pixels, z = torch.zeros(1, 3, 2 * fold, 3 * fold), torch.zeros(1, 4, 2, 3)
    networks = [vae] if e_prime is None else [vae, e_prime]
    runs = lambda: (latents.embed_lr(pixels), latents.encode_hr(pixels), latents.decode(z))  # noqa: E731
    adapter = latents.adapter
    assert _largest_output(networks, runs) == adapter.bytes_per_pixel * 6 * fold**2
    assert adapter.map_bytes_per_pixel == 0.0 and adapter.pixels_per_latent == fold
    assert adapter.decoder_overlap is vae.decoder.overlap
    assert adapter.decoder_margin == vae.decoder.margin
    assert adapter.encoder_margin == (vae.encoder if e_prime is None else e_prime).margin


@torch.no_grad()
def test_what_it_reads_from_stays_as_it_is_and_every_window_is_told(normal):
    latents, heard = _make_vae(), []
    z = normal(1, 4, 10, 14).double()
    before = z.clone()
    latents.decode_in_windows(z, 32, CPU, torch_map, lambda: heard.append(1))
    assert torch.equal(z, before) and len(heard) == latents.decoding_windows(10, 14, 32)
    heard.clear()
    latents.embed_in_windows(normal(1, 3, 80, 112).double(), 32, CPU, torch_map, lambda: heard.append(1))
    assert len(heard) == latents.encoding_windows(10, 14, 32)


def torch_map(shape, dtype):
    """In memory, with what must not be read before it is written."""
    return torch.full(tuple(shape), torch.nan, dtype=dtype)


def test_a_callback_can_stop_it(normal):
    layers = decoder_layers(_make_vae().vae, torch.nn.Identity())
    assert count_windows(layers, 10, 14, 4000) > 5

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_in_windows(layers, normal(1, 4, 10, 14).double(), 4000, CPU, torch_map, stop)


@pytest.mark.parametrize("groups", [1, 3, 12])
@pytest.mark.parametrize("offset", [0.0, 3000.0])
def test_statistics_of_windows_are_the_maps(groups, offset, normal):
    """Also where the mean is large beside the deviation, which sums of squares would lose in fp32."""
    values = normal(2, 12, 23, 31) * torch.arange(1, 13)[:, None, None] + offset
    norm = torch.nn.GroupNorm(groups, 12, eps=1e-6)
    torch.nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(0))
    found = FeatureMap(torch.empty_like(values), CPU, is_normalised=True)
    for window in pieces(23, 31, 9):
        found.write(window, window.of(values))
    whole = Window(0, 0, 23, 31)
    expected = copy.deepcopy(norm).double()(values.double()).float()
    torch.testing.assert_close(found.normalised(norm)(found.read(whole)), expected, atol=2e-3, rtol=1e-4)
    assert found.normalised(None)(values) is values


@pytest.mark.parametrize("sharpness", [1.0, 40.0])
@pytest.mark.parametrize("lengths", [(17,), (1, 5, 11), (8, 8, 1)])
def test_attention_to_keys_in_parts(lengths, sharpness, normal):
    """Also where a later part outweighs all before it by more than floating-point numbers can hold."""
    query, key, value = (normal(2, 3, n, 8, seed=n).double() for n in (7, 17, 18))
    value = value[:, :, :17]
    parts = zip(key.split(lengths, 2), value.split(lengths, 2), strict=True)
    expected = F.scaled_dot_product_attention(sharpness * query, sharpness * key, value)
    torch.testing.assert_close(attend(sharpness * query, [(sharpness * k, v) for k, v in parts]), expected)
