"""Seeds depend on what is drawn: equal parts give equal seeds, anything else another."""

import itertools

import torch

from clearsr.seeds import derive_seed, file_seed, make_generator


def test_the_same_on_every_machine_and_in_every_version():
    assert derive_seed("image", 0) == 1878500273850521086
    assert file_seed(0, "photo.jpg") == derive_seed("file", 0, "photo.jpg")


def test_a_name_that_is_no_unicode_has_a_seed_too():
    names = [b"\xff.jpg".decode("utf-8", "surrogateescape"), b"\xfe.jpg".decode("utf-8", "surrogateescape")]
    assert len({file_seed(0, name) for name in [*names, "\u00ff.jpg"]}) == 3


def test_every_part_and_its_order_and_type_count():
    parts = [(), ("a",), ("a", 1), (1, "a"), ("a", "1"), ("a1",), ("a", 1, 0), ("b", 1), ("a", 11), ("a", -1)]
    seeds = [derive_seed(*p) for p in parts]
    assert len(set(seeds)) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_many_seeds_do_not_collide_and_their_draws_are_unrelated():
    seeds = {derive_seed("noise", run, sample) for run, sample in itertools.product(range(20), range(500))}
    assert len(seeds) == 10_000
    draws = torch.stack([torch.randn(2000, generator=make_generator("noise", 0, i)) for i in range(20)])
    correlation = torch.corrcoef(draws) - torch.eye(20)
    assert correlation.abs().max() < 0.12


def test_a_generator_leaves_the_global_state_alone():
    before = torch.random.get_rng_state()
    first = torch.rand(3, generator=make_generator("x", 1))
    assert torch.equal(first, torch.rand(3, generator=make_generator("x", 1)))
    assert torch.equal(torch.random.get_rng_state(), before)
