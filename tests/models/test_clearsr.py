"""The whole network against diffusers' own U-Net, and where the prompt and the gradients go."""

import pytest
import torch

from clearsr.models.clearsr import ControlSignals, compile_network, head_dimension
from clearsr.training.setup import recompute_activations

SIZES = [(16, 16), (8, 20), (9, 13)]  # the last is not a multiple of what the U-Net folds


@pytest.fixture
def inputs(normal):
    def make(network, height=16, width=16, batch=2):
        latent, z_lr = normal(batch, 8, height, width), normal(batch, 8, height, width, seed=1)
        timestep = torch.tensor([3, 700])[:batch]
        return latent, timestep, z_lr, network.null_prompt.expand(batch, -1, -1)

    return make


def _prompt(normal, tokens=1, batch=2):
    return normal(batch, tokens, 16, seed=5)


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
def test_untrained_control_leaves_the_unets_output_as_it_is(fresh_network, diffusers_unet, inputs, size):
    latent, timestep, z_lr, text = inputs(fresh_network, *size)
    output = fresh_network(latent, timestep, z_lr, prompt=text)
    expected = diffusers_unet(fresh_network.unet)(latent, timestep, text).sample
    torch.testing.assert_close(output, expected)
    assert expected.abs().mean() > 0.1  # the base says something
    structure = fresh_network.structure_features(z_lr)
    control = fresh_network.control_signals(z_lr, timestep, text, structure)
    assert not any(signal.any() for signal in (*control.skips, control.middle))


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
def test_with_control_it_is_diffusers_unet_given_the_signals_as_residuals(
    network, diffusers_unet, inputs, size
):
    latent, timestep, z_lr, text = inputs(network, *size)
    control = network.control_signals(z_lr, timestep, text, network.structure_features(z_lr))
    assert all(signal.abs().mean() > 1e-3 for signal in (*control.skips, control.middle))
    unet = diffusers_unet(network.unet)
    expected = unet(
        latent,
        timestep,
        text,
        down_block_additional_residuals=tuple(control.skips),
        mid_block_additional_residual=control.middle,
    ).sample
    torch.testing.assert_close(network(latent, timestep, z_lr, prompt=text), expected)
    assert not torch.allclose(expected, unet(latent, timestep, text).sample, atol=1e-2)


@torch.no_grad()
def test_control_is_the_zero_convolutions_of_the_sum_of_both_modules(network, inputs):
    _, timestep, z_lr, text = inputs(network)
    features, middle = network.detail_preserving(z_lr, timestep, text)
    structure = network.structure_preserving(z_lr)
    control = network.control_signals(z_lr, timestep, text, structure)
    for i, convolution in enumerate(network.detail_preserving.zero_convs):
        torch.testing.assert_close(control.skips[i], convolution(features[i] + structure[i]))
    torch.testing.assert_close(control.middle, network.detail_preserving.mid_zero_conv(middle))


@torch.no_grad()
def test_only_the_decoder_sees_the_image_prompt(network, inputs, normal):
    latent, timestep, z_lr, text = inputs(network)
    seen = {}

    def record(name):
        def hook(module, args, kwargs):
            seen[name] = kwargs["encoder_hidden_states"]

        return hook

    handles = [
        module.register_forward_pre_hook(record(name), with_kwargs=True)
        for name, module in network.named_modules()
        if name.endswith("attn2")
    ]
    prompt = _prompt(normal, tokens=3)
    try:
        network(latent, timestep, z_lr, prompt)
    finally:
        for handle in handles:
            handle.remove()
    assert len(seen) == len(handles) > 6
    for name, context in seen.items():
        assert torch.equal(context, prompt if name.startswith("unet.up_blocks") else text), name
    assert {name.split(".")[1] for name in seen} >= {"up_blocks", "down_blocks", "mid_block"}


@torch.no_grad()
@pytest.mark.parametrize("tokens", [2, 5])  # 2 is the null prompt's own length
@pytest.mark.parametrize("dropped", [(True, False), (False, True), (True, True), (False, False)])
def test_dropped_samples_get_the_null_prompt(network, inputs, normal, tokens, dropped):
    latent, timestep, z_lr, text = inputs(network)
    prompt = _prompt(normal, tokens)
    output = network(latent, timestep, z_lr, prompt, torch.tensor(dropped))
    conditional = network(latent, timestep, z_lr, prompt)
    unconditional = network(latent, timestep, z_lr, text)
    for row, is_dropped in enumerate(dropped):
        expected = unconditional if is_dropped else conditional
        torch.testing.assert_close(output[row], expected[row], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(conditional, unconditional, atol=1e-2)


def _one_by_one(network, latent, timestep, z_lr, prompt, dropped):
    """Every sample in a batch of its own, under its own prompt alone, which nothing pads."""
    rows = [slice(row, row + 1) for row in range(len(dropped))]
    return torch.cat(
        [
            network(latent[r], timestep[r], z_lr[r], network.null_prompt if is_dropped else prompt[r])
            for r, is_dropped in zip(rows, dropped, strict=True)
        ]
    )


def _gradients(network, output):
    trained = dict(network.named_parameters())
    found = torch.autograd.grad((output * output).sum(), list(trained.values()), allow_unused=True)
    return dict(zip(trained, found, strict=True))


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("tokens", [1, 2, 5])  # less than the null prompt's, as many, more
def test_prompts_of_two_lengths_take_one_pass_which_equals_separate_ones(
    make_network, inputs, normal, tokens, recomputed
):
    network = make_network().double().requires_grad_(True)
    if recomputed:
        recompute_activations(network)
    latent, timestep, z_lr, _ = (x.double() if x.is_floating_point() else x for x in inputs(network))
    prompt, dropped = _prompt(normal, tokens).double(), [True, False]
    passes = []
    handle = network.unet.conv_out.register_forward_hook(lambda *_: passes.append(1))
    together = network(latent, timestep, z_lr, prompt, torch.tensor(dropped))
    handle.remove()
    assert len(passes) == 1
    alone = _one_by_one(network, latent, timestep, z_lr, prompt, dropped)
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    ours, theirs = _gradients(network, together), _gradients(network, alone)
    for name, gradient in theirs.items():
        assert (gradient is None) == (ours[name] is None), name
        if gradient is not None:
            torch.testing.assert_close(ours[name], gradient, rtol=1e-9, atol=1e-11, msg=name)


def test_padding_teaches_queries_and_keys_nothing_in_16_bits(make_network, inputs, normal):
    """The softmax over a single token is 1 whatever they are, however long the row that it stands in."""
    network = make_network(null_prompt_tokens=77).requires_grad_(True)
    latent, timestep, z_lr, _ = inputs(network)
    prompt = _prompt(normal, 1)
    names = [
        name
        for name, _ in network.named_parameters()
        if name.startswith("unet.up_blocks") and ("attn2.to_q" in name or "attn2.to_k" in name)
    ]

    def norms(*arguments):
        with torch.autocast("cpu", torch.bfloat16):
            gradients = _gradients(network, network(latent, timestep, z_lr, *arguments).float())
        return [gradients[name].norm() for name in names]

    none, both = torch.tensor([False, False]), torch.tensor([True, True])
    padded, usual = norms(prompt, none), norms(prompt, both)
    assert len(names) > 4 and max(padded) < 1e-6 * min(usual)


def test_all_that_is_trained_has_a_gradient_whatever_is_dropped(make_network, inputs, normal):
    """Processes wait for every gradient, unless they are to look for those that will not come."""
    network = make_network(train_unet="full")
    network.set_trainable()
    latent, timestep, z_lr, _ = inputs(network)
    prompt = network.image_prompt(normal(2, 3, 32, 32).clamp(-1, 1))
    network(latent, timestep, z_lr, prompt, torch.tensor([True, True])).sum().backward()
    assert not [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None]


@torch.no_grad()
def test_rows_of_a_batch_are_independent(network, inputs, normal):
    latent, timestep, z_lr, _ = inputs(network, 9, 13)
    prompt = _prompt(normal)
    together = network(latent, timestep, z_lr, prompt)
    for row in (0, 1):
        rows = slice(row, row + 1)
        alone = network(latent[rows], timestep[rows], z_lr[rows], prompt[rows])
        torch.testing.assert_close(together[rows], alone, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    "control", [{"structure_preserving": False}, {"cross_attention": False}, {"window_size": None}]
)
def test_ablations_run_and_change_the_result(network, make_network, inputs, control):
    ablated = make_network(control=control)
    latent, timestep, z_lr, text = inputs(network)
    output = ablated(latent, timestep, z_lr, text)
    assert output.shape == latent.shape and output.isfinite().all()
    assert (ablated.structure_features(z_lr) is None) == (control == {"structure_preserving": False})


def test_trainable_parts_follow_train_unet(make_network, lora_encoder):
    def trainable(**changes):
        network = make_network(**changes)
        network.set_trainable()
        names = {name for name, p in network.named_parameters() if p.requires_grad}
        all_names = {name for name, _ in network.named_parameters()}
        return names, all_names

    control = ("detail_preserving.", "structure_preserving.")
    names, all_names = trainable(train_unet="lora", **lora_encoder)
    assert names == {n for n in all_names if n.startswith(control) or "lora_" in n}
    assert any(n.startswith("latents.vae.encoder") for n in names)
    assert any(n.startswith("unet.up_blocks") for n in names)
    names, all_names = trainable(train_unet="frozen", **lora_encoder)
    assert names == {
        n for n in all_names if n.startswith(control) or ("lora_" in n and n.startswith("latents.vae"))
    }
    names, all_names = trainable(train_unet="full")
    whole = (*control, "unet.", "image_prompt.", "null_prompt")
    assert names == {n for n in all_names if n.startswith(whole)}


def test_every_trained_tensor_gets_a_gradient(make_network, lora_encoder, inputs, normal):
    """The logit-only part of an attention to a single token has none; the prompt here has three tokens."""
    network = make_network(train_unet="full", **lora_encoder)
    network.set_trainable()
    latent, timestep, _, _ = inputs(network)
    z_lr = network.latents.embed_lr(normal(2, 3, 128, 128, seed=3)).mean
    network(
        latent, timestep, z_lr, _prompt(normal, 3), torch.tensor([True, False])
    ).square().mean().backward()
    without = {
        n
        for n, p in network.named_parameters()
        if p.requires_grad and not (p.grad is not None and p.grad.any())
    }
    # The image prompt was not computed here, and the mean does not see the encoder's log variance.
    assert {n for n in without if not n.startswith("image_prompt.")} == set()


def test_pixel_multiple_is_what_vae_and_unet_fold(network):
    assert network.pixel_multiple() == 8 * 4
    assert network.latents.pixels_per_latent() == 8


@torch.no_grad()
def test_head_dimension_is_the_bases(network):
    assert head_dimension(network.unet) == 8
    attention = network.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    assert attention.to_q.out_features // attention.heads == 8


@torch.no_grad()
def test_zero_signals_are_the_plain_unet(network, diffusers_unet, inputs):
    latent, timestep, _, text = inputs(network)
    encoded = network.unet_encode(latent, timestep, text)
    nothing = ControlSignals([torch.zeros_like(s) for s in encoded.skips], torch.zeros_like(encoded.middle))
    torch.testing.assert_close(
        network.unet_decode(encoded, nothing, text),
        diffusers_unet(network.unet)(latent, timestep, text).sample,
    )


def test_every_block_of_the_denoising_network_is_compiled(make_network, monkeypatch):
    network, compiled, asked = make_network(), [], []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(module))
    monkeypatch.setattr("clearsr.models.clearsr.check_compiler", asked.append)
    compile_network(network)
    unet, control = network.unet, [network.detail_preserving, network.structure_preserving]
    assert compiled == [*unet.down_blocks, unet.mid_block, *unet.up_blocks, *control]
    assert asked == [torch.device("cpu")]
