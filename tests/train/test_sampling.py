"""Sampling against the golden greedy samples, exact probabilities, and itself at other batch sizes."""

import copy
import gc
import json
import weakref
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from train.linear import OTHERS, PRODUCTS, choose_products, offered, packed, quantize_int8
from train.model import DnDTransformer, TransformerConfig
from train.native import NativeLinear, native_attention, native_code, native_suits
from train.noise import code_keys, gumbel, philox
from train.sampling import FREE, Sampler, Settings, _held_by_graphs, guidance_scales, sample_best, sample_codes

TINY = TransformerConfig(4, 2, 32, 19, (3, 5), (1, 3), num_classes=4, class_dropout=0.1)


def random_model(config=TINY, scale=0.3):
    torch.manual_seed(0)
    model = DnDTransformer(config).eval()
    for output in model.output:
        torch.nn.init.normal_(output.weight, std=scale)
    return model


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.mark.parametrize(
    ("name", "guidance"),
    [("transformer_1head_uncond", 1.0), ("transformer_2head_cfg", 1.0), ("transformer_2head_cfg", 2.0)],
)
def test_greedy_samples_are_the_golden_ones(shared, name, guidance):
    with safe_open(shared / f"reference/{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        golden = DnDTransformer(TransformerConfig.from_released(json.loads(file.metadata()["config"])))
    weights = {key.removeprefix("state_dict."): t for key, t in tensors.items() if key.startswith("state_dict.")}
    golden.load_state_dict(weights)
    codes = sample_codes(golden, tensors["cond"], guidance=guidance, temperature=0)
    assert torch.equal(codes, tensors[f"greedy.cfg{guidance}"])


@pytest.mark.parametrize(("guidance", "config"), [(1.7, (0, 1, 3)), (4.0, (0, 1, 2, 3)), (0.0, (3,))])
def test_greedy_samples_are_those_of_the_whole_pass(guidance, config):
    """Each greedy code is the arg-max of the teacher-forced logits over the sampled codes, without any cache."""
    model = random_model(TransformerConfig(4, 2, 32, 19, (3, 5), config, num_classes=4, class_dropout=0.1))
    classes = torch.tensor([0, 3, 1])
    codes = sample_codes(model, classes, guidance=guidance, temperature=0)
    condition, unguided = model(codes, classes), model(codes, torch.full_like(classes, 4))
    assert torch.equal(codes, (unguided + (condition - unguided) * guidance).argmax(-1))


def test_philox_gives_the_known_answers():
    """Known answers of the Random123 distribution (kat_vectors)."""
    zero, ones = torch.tensor(0), torch.tensor(0xFFFFFFFF)
    assert [int(x) for x in philox((zero,) * 4, 0)] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert [int(x) for x in philox((ones,) * 4, 2**64 - 1)] == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


def test_noise_is_gumbel():
    noise = gumbel(code_keys(3, torch.arange(32), 4, 2).flatten(0, 2), torch.arange(4096, dtype=torch.int32))
    uniform = (-(-noise.double()).exp()).exp().flatten()
    counts = torch.histc(uniform.float(), 64, 0, 1)
    assert chi_squared(counts, torch.full((64,), 1 / 64)) < 115  # 99.99 % of chi-squared with 63 degrees
    correlation = torch.corrcoef(noise[:64])
    assert (correlation - torch.eye(64)).abs().max() < 0.08


def chi_squared(counts, probabilities):
    expected = probabilities.double() * counts.sum()
    return ((counts.double() - expected) ** 2 / expected)[expected > 0].sum()


FILTERS = [{}, {"temperature": 0.6}, {"top_k": 5}, {"top_p": 0.7}, {"top_k": 9, "top_p": 0.8, "temperature": 1.3}]


GUIDED = [{"guidance": 2.5}, {"guidance": [3.0, 0.5], "top_k": [7, 4], "top_p": [1.0, 0.9], "temperature": [1.4, 0.7]}]


@pytest.mark.parametrize("options", [*FILTERS, *GUIDED])
def test_draws_have_the_exact_probabilities(options):
    """20,000 draws of two depths against the probabilities, filtered here in a plain way."""
    model = random_model(TransformerConfig(2, 2, 16, 13, (1, 1), (0, 1), num_classes=4, class_dropout=0.1), scale=0.5)
    classes = torch.full((20_000,), 2)
    codes = sample_codes(model, classes, seed=5, **options)[:, 0]
    for depth, (rows, drawn) in enumerate([(slice(None), codes[:, 0]), (codes[:, 0] == codes[0, 0], codes[:, 1])]):
        chosen = {k: v[depth] if isinstance(v, list) else v for k, v in options.items()}
        logits = model(codes[:1, None], classes[:1])[0, 0, depth]
        unguided = model(codes[:1, None], torch.tensor([4]))[0, 0, depth]
        logits = unguided + (logits - unguided) * chosen.pop("guidance", 1.0)
        expected = plain_filter(logits, **chosen)
        counts = drawn[rows].bincount(minlength=13)
        assert not counts[expected == 0].any()
        assert chi_squared(counts, expected) < 39  # 99.99 % of chi-squared with 12 degrees


def plain_filter(logits, temperature=1.0, top_k=0, top_p=1.0):
    order = logits.argsort(descending=True)
    chances = (logits[order] / temperature).softmax(0)
    if top_k:
        chances[top_k:] = 0
    chances /= chances.sum()
    kept = 1 + int((chances.cumsum(0) <= top_p).sum()) if top_p < 1 else len(order)
    chances[kept:] = 0
    return torch.zeros_like(chances).scatter(0, order, chances / chances.sum())


def test_random_numbers_do_not_depend_on_the_batch():
    images = torch.arange(32)
    whole = code_keys(7, images, 6, 2)
    codes = torch.arange(50, dtype=torch.int32)
    for size in (1, 7):
        parts = torch.cat([code_keys(7, part, 6, 2) for part in images.split(size)])
        assert torch.equal(parts, whole)
    assert torch.equal(gumbel(whole[3:4, 2, 1], codes), gumbel(whole[:, 2, 1], codes)[3:4])
    assert torch.equal(gumbel(whole[:, 0, 0], codes[40:]), gumbel(whole[:, 0, 0], codes)[:, 40:])


def test_images_do_not_depend_on_the_batch(model):
    classes = torch.arange(32) % 4
    whole = sample_codes(model, classes, guidance=1.5, seed=2, first_index=100)
    for size in (1, 7):
        parts = [
            sample_codes(model, part, guidance=1.5, seed=2, first_index=100 + size * i)
            for i, part in enumerate(classes.split(size))
        ]
        assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(sample_codes(model, classes, guidance=1.5, seed=3, first_index=100), whole)
    assert len(whole.unique(dim=0)) == 32


def test_options_per_depth(model):
    codes = sample_codes(model, [1] * 8, temperature=[0, 1], top_k=(3, 4), top_p=[0.9, 1.0])
    assert len(codes[:, 0, 0].unique()) == 1 and 1 < len(codes[:, 0, 1].unique()) <= 4


def test_top_k_one_is_greedy(model):
    greedy = sample_codes(model, [0, 1], temperature=0)
    assert torch.equal(sample_codes(model, [0, 1], top_k=1), greedy)
    assert torch.equal(sample_codes(model, [0, 1], top_p=0.0), greedy)


def test_given_codes_stay_and_are_seen(model):
    free = sample_codes(model, [0, 1], seed=1)
    given = torch.full_like(free, FREE)
    given[:, :, 0] = free[:, :, 0].flip(0)  # complete the deeper codes of other coarse ones
    codes = sample_codes(model, [0, 1], seed=1, given=given)
    assert torch.equal(codes[:, :, 0], given[:, :, 0]) and not torch.equal(codes[:, :, 1], free[:, :, 1])
    assert torch.equal(sample_codes(model, [0, 1], seed=1, given=free), free)
    prefix = torch.where(torch.arange(15)[None, :, None] < 7, free, FREE)
    assert torch.equal(sample_codes(model, [0, 1], seed=1, given=prefix), free)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_log_likelihood_is_that_of_the_whole_pass(model, guidance):
    classes = torch.tensor([0, 3])
    codes, likelihood = sample_codes(model, classes, guidance=guidance, top_k=5, return_log_likelihood=True)
    wanted = model(codes, classes).log_softmax(-1).gather(-1, codes[..., None]).sum((1, 2, 3))
    torch.testing.assert_close(likelihood, wanted.double(), rtol=1e-5, atol=0)


def test_best_of_n_are_the_likeliest(model):
    codes, likelihood = sample_best(model, [0, 2], candidates=5, keep=2, seed=4, first_index=3)
    every, all_likelihood = sample_codes(model, [0] * 5 + [2] * 5, seed=4, first_index=15, return_log_likelihood=True)
    assert torch.equal(likelihood, all_likelihood.view(2, 5).topk(2).values)
    assert torch.equal(codes[1, 0], every[5 + int(all_likelihood[5:].argmax())])


def test_guidance_schedules():
    scales = {name: guidance_scales(TINY, 3.0, name, (0.0, 1.0))[:, 0] for name in ("constant", "linear", "cosine")}
    assert (scales["constant"] == 3).all()
    torch.testing.assert_close(scales["linear"], torch.linspace(1, 3, 15))
    torch.testing.assert_close(scales["cosine"][[0, 7, 14]], torch.tensor([1.0, 2.0, 3.0]))
    inside = guidance_scales(TINY, [3.0, 2.0], "constant", (0.25, 0.5))
    assert (inside == torch.tensor([3.0, 2.0])).all(1).nonzero().flatten().tolist() == [4, 5, 6, 7]


def test_after_the_interval_guidance_is_gone(model):
    """Codes after the interval follow the conditional model, although its unguided half is no longer computed."""
    codes = sample_codes(model, [0, 1], guidance=4.0, guidance_interval=(0.2, 0.5), temperature=0)
    plain = model(codes, torch.tensor([0, 1])).argmax(-1)
    assert torch.equal(codes[:, 8:], plain[:, 8:]) and torch.equal(codes[:, :3], plain[:, :3])
    assert not torch.equal(codes, plain)


def test_training_mode_is_ignored_and_restored(model):
    wanted = sample_codes(model, [0, 1], seed=1)
    model.train()
    assert torch.equal(sample_codes(model, [0, 1], seed=1), wanted)
    assert model.training
    model.eval()


@pytest.mark.parametrize(
    ("classes", "options", "message"),
    [
        ([4], {}, "holds 4.*0..3"),
        ([-1], {}, "holds -1"),
        ([[0]], {}, "axes"),
        ([0], {"temperature": -1.0}, "temperature"),
        ([0], {"temperature": [1.0, 1.0, 1.0]}, "one per depth"),
        ([0], {"top_p": 1.5}, "top_p"),
        ([0], {"guidance_schedule": "square"}, "linear"),
        ([0], {"guidance_interval": (0.5, 0.2)}, "guidance_interval"),
        ([0], {"given": torch.zeros(1, 15, 3)}, "given"),
        ([0], {"given": torch.full((1, 15, 2), 19)}, "0..18"),
    ],
)
def test_bad_input_is_refused_in_one_line(model, classes, options, message):
    with pytest.raises(ValueError, match=message) as error:
        sample_codes(model, classes, **options)
    assert "\n" not in str(error.value)


def test_guidance_needs_class_dropout():
    model = random_model(TransformerConfig(2, 2, 16, 13, (1, 1), (1,)))
    with pytest.raises(ValueError, match="class dropout"):
        sample_codes(model, [0], guidance=2.0)


def test_a_masked_step_over_all_places_is_that_over_the_places_so_far(model):
    """What a captured step does on a GPU, done here: masked keys weigh nothing."""
    classes, settings = torch.tensor([0, 3]), Settings((0.0, 0.0), (0, 0), (1.0, 1.0), guided=False, likelihood=False)
    sampler = Sampler(model, 2, settings)
    sampler.given.fill_(FREE)
    sampler.decoder.start(classes)
    sampler.decoder.device = torch.device("cuda")
    with torch.inference_mode():
        for position in range(model.config.num_positions):
            sampler.decoder._advance(15 if position else 0, 2, sampler._pick)
    assert torch.equal(sampler.codes, sample_codes(model, classes, temperature=0))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_graphs_sample_what_the_whole_pass_says():
    """On a GPU: greedy codes from captured graphs, replayed twice, are the arg-max of the teacher-forced logits."""
    config = TransformerConfig(4, 2, 128, 61, (7, 7), (1, 3), num_classes=4, class_dropout=0.1)
    model = random_model(config).cuda()
    classes = torch.tensor([0, 3, 1], device="cuda")
    for guidance in (1.0, 2.0, 2.0):
        codes = sample_codes(model, classes, guidance=guidance, temperature=0)
        condition, unguided = model(codes, classes), model(codes, torch.full_like(classes, 4))
        assert torch.equal(codes, (unguided + (condition - unguided) * guidance).argmax(-1))
    on_cpu = sample_codes(model.cpu(), classes.cpu(), seed=9, guidance=1.5)
    assert (sample_codes(model.cuda(), classes, seed=9, guidance=1.5).cpu() == on_cpu).float().mean() > 0.99


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["plain", *PRODUCTS])
def test_every_product_computes_the_same(name, dtype):
    if name not in ("plain", *offered(dtype)):
        pytest.skip(f"no {name} here for {dtype}")
    model = random_model().to(dtype)
    shapes = ("96x32", "32x32", "256x32", "32x256", "19x32", OTHERS)
    fast = packed(model, products=dict.fromkeys(shapes, name))
    assert packed(fast) is fast
    for rows in (1, 2, 4, 9):
        codes, classes = torch.randint(19, (rows, 15, 2)), torch.arange(rows) % 4
        for part in (codes[:, :1], codes):  # another number of rows
            wanted, got = model(part, classes), fast(part, classes).float()
            assert (got - wanted).norm() < (1e-5 if dtype == torch.float32 else 0.03) * wanted.norm()


needs_compiler = pytest.mark.skipif(native_code(torch.float32) is None, reason="no C compiler")


@needs_compiler
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("width", [16, 64, 128])
def test_native_attention_is_attention_over_the_cache(dtype, bound, width):
    cache = torch.randn(2, 3, 4, 37, width).to(dtype)
    for rows, length in ((3, 1), (2, 36), (3, 37)):  # a cache of more rows and positions than are looked at
        q = torch.randn(rows, 1, 2, 4, width)[:, :, 0].transpose(1, 2).to(dtype)  # strided, as queries beside keys are
        seen = [q, *(half[:rows, :, :length] for half in cache)]
        wanted = torch.nn.functional.scaled_dot_product_attention(*(tensor.double() for tensor in seen))
        assert (native_attention(*seen) - wanted).norm() < bound * wanted.norm()


@needs_compiler
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_what_is_native_samples_the_same_codes(model, guidance):
    native = packed(model, products=dict.fromkeys(("96x32", "32x32", "256x32", "32x256", "19x32", OTHERS), "native"))
    options = {"guidance": guidance, "guidance_interval": (0.0, 0.5), "seed": 3, "return_log_likelihood": True}
    (codes, likelihood), (wanted, of_wanted) = (sample_codes(m, [0, 3], **options) for m in (native, model))
    assert torch.equal(codes, wanted)
    torch.testing.assert_close(likelihood, of_wanted, rtol=1e-5, atol=0)


def test_without_a_compiler_samples_are_drawn_without(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler --flag")
    native_code.cache_clear()
    try:
        assert "native" not in offered(torch.float32)
        with pytest.raises(ValueError, match=r"no C compiler here.*another name") as error:
            NativeLinear(torch.ones(2, 16))
        assert "\n" not in str(error.value)
    finally:
        native_code.cache_clear()


def test_a_product_that_is_not_here_is_named(model):
    with pytest.raises(ValueError, match=r"no product 'abacus' here.*another name") as error:
        packed(model, products={"96x32": "abacus", OTHERS: "plain"})
    assert "\n" not in str(error.value)


def test_each_shape_has_the_product_that_was_the_fastest_here():
    config = replace(TINY, dim=256)
    chosen = choose_products(config, torch.float32, 2)
    assert list(chosen) == ["768x256", "256x256", "256x768", "19x256", OTHERS]
    assert set(chosen.values()) <= {"plain", *offered(torch.float32)}
    assert choose_products(config, torch.float32, 2) == chosen  # measured once a process


def test_of_a_model_that_costs_nothing_every_run_has_the_same_products():
    chosen = choose_products(random_model().config, torch.float32, 2)
    assert list(chosen) == ["96x32", "32x32", "256x32", "32x256", "19x32", OTHERS]
    assert {chosen[shape] for shape in chosen if shape != OTHERS} == {"plain"}


@needs_compiler
def test_native_code_serves_one_thread_and_models_that_no_cache_holds():
    small, large = (TransformerConfig(4, 4, dim, 512, (2, 2), (3,)) for dim in (64, 512))
    odd = TransformerConfig(4, 4, 528, 512, (2, 2), (3,))  # heads of 132
    assert [native_suits(config, torch.float32, 1) for config in (small, large, odd)] == [False, True, False]
    assert not native_suits(large, torch.float32, 2)


def test_int8_weights_sample_nearly_the_same(model):
    """Int8 weights cost little: the distributions stay within a hundredth of a nat, and they can be sampled."""
    small = quantize_int8(model)
    codes = sample_codes(small, [0, 1, 2, 3], guidance=1.5, seed=1)
    classes = torch.arange(4)
    wanted, got = model(codes, classes).log_softmax(-1), small(codes, classes).log_softmax(-1)
    assert (wanted.exp() * (wanted - got)).sum(-1).mean() < 0.01
    assert sum(t.nbytes for t in small.state_dict().values()) < 0.6 * sum(t.nbytes for t in model.state_dict().values())


def test_a_sampler_is_freed_when_nobody_has_it(model):
    """Not when Python looks for cycles: on a GPU gigabytes would wait for that."""
    settings = Settings((1.0, 1.0), (0, 0), (1.0, 1.0), guided=False, likelihood=False)
    Sampler(model, 2, settings)  # what torch imports at the first one keeps frames
    gc.disable()
    try:
        sampler = Sampler(model, 2, settings)
        shape = (2, model.config.num_positions, 2)
        sampler.run(torch.tensor([0, 1]), torch.ones(shape[1:]), torch.zeros(*shape, 2), torch.full(shape, FREE))
        cache, sampler = weakref.ref(sampler.decoder.caches[0]), None
        assert cache() is None
    finally:
        gc.enable()


def test_a_new_graph_is_due_when_any_weight_moves(model):
    before = _held_by_graphs(model)
    assert _held_by_graphs(model) == before
    copied = copy.deepcopy(model)
    copied.norm[1].weight.data = copied.norm[1].weight.data.clone()
    assert _held_by_graphs(copied)[:-3] != before[:-3]
    kept = _held_by_graphs(copied)
    copied.output[1].weight.data = copied.output[1].weight.data.clone()
    assert _held_by_graphs(copied) != kept


def test_int8_is_for_cpus():
    with torch.device("meta"):
        model = DnDTransformer(TINY)
    with pytest.raises(ValueError, match="int8 is for CPUs"):
        quantize_int8(model)


def test_samples_can_be_trained_on(model):
    codes = sample_codes(model, [0, 1])
    model(codes, torch.tensor([0, 1]), return_loss=True).sum().backward()
    model.zero_grad()
