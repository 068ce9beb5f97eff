"""BST against loops over its equations, and what must not influence an output."""

import math

import pytest
import torch
from torch.nn import functional

from bst.behaviors import FusedBehaviors, behaviors
from bst.bst import BST, Block
from data.history.dataset import PADDING, TIME_GAP_BUCKETS
from tests.checks import build, check_batch_of_one, check_learns_one_batch, check_reload, check_rows_do_not_mix

ITEMS, ATTRIBUTES, USERS, HISTORY, DIM, HEADS, FACTORS = 20, 3, [6, 3], 5, 8, 2, 4

SETTINGS = {
    "num_items": ITEMS,
    "num_attributes": ATTRIBUTES,
    "user_cardinalities": USERS,
    "history_length": HISTORY,
    "embedding_dim": DIM,
    "num_heads": HEADS,
    "num_blocks": 1,
    "num_factors": FACTORS,
    "hidden_units": [16],
    "dropout": 0.0,
    "target": "rating",
    "rating_range": [1.0, 5.0],
    "rating_units": [0.0, 1.0],
    "loss": "softmax",
    "use_sequence": True,
}


def make_model(**changes) -> BST:
    """A model with weights so large that each part matters."""
    model = build(BST, SETTINGS, changes)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.attribute_shares.copy_(torch.rand(ITEMS, ATTRIBUTES))
    return model.eval()


def make_batch(rows: int, candidates: int = 1) -> list[torch.Tensor]:
    history = torch.randint(2, ITEMS, (rows, HISTORY)).int()
    for row in range(rows):
        history[row, : row % (HISTORY + 1)] = PADDING  # also an empty history
    history = history.roll(1, 0)
    seen = history != PADDING
    user = torch.stack([torch.randint(size, (rows,)) for size in USERS], 1).int()
    return [
        torch.randint(2, ITEMS, (rows, candidates)).int(),
        history,
        torch.randn(rows, HISTORY) * seen,
        torch.randint(TIME_GAP_BUCKETS, (rows, HISTORY)).int() * seen,
        user,
        torch.randn(rows, candidates, 3),
        torch.randint(1, 6, (rows, candidates)).float(),
    ]


def linear(layer, x):
    return layer.weight @ x + layer.bias


def layer_norm(layer, x):
    return (x - x.mean()) / (x.var(unbiased=False) + layer.eps).sqrt() * layer.weight + layer.bias


def block_in_loops(block: Block, sequence: list[torch.Tensor], position: int) -> torch.Tensor:
    """The equations of section 2.2 for one position of one sequence without padding."""
    attention, dim = block.attention, len(sequence[0])
    w_q, w_k, w_v = attention.in_proj_weight.chunk(3)
    b_q, b_k, b_v = attention.in_proj_bias.chunk(3)
    heads = []
    for h in range(HEADS):
        part = slice(h * dim // HEADS, (h + 1) * dim // HEADS)
        query = (w_q @ sequence[position] + b_q)[part]
        scores = [query @ (w_k @ s + b_k)[part] / math.sqrt(dim / HEADS) for s in sequence]
        weights = torch.stack(scores).softmax(0)
        heads.append(sum(w * (w_v @ s + b_v)[part] for w, s in zip(weights, sequence, strict=True)))
    attended = linear(attention.out_proj, torch.cat(heads))
    s = layer_norm(block.norm_attention, sequence[position] + attended)
    hidden = functional.leaky_relu(linear(block.feed_forward[0], s))
    return layer_norm(block.norm_output, s + linear(block.feed_forward[2], hidden))


@pytest.mark.parametrize("num_blocks", [1, 2])
@pytest.mark.parametrize("use_sequence", [True, False])
def test_output_equals_the_equations_in_loops(num_blocks, use_sequence):
    model = make_model(num_blocks=num_blocks, use_sequence=use_sequence).double()
    batch = [part.double() if part.is_floating_point() else part for part in make_batch(7, 3)]
    outputs = model(*batch[:-1])
    user_rows, item_rows = model.factors.weight.split([USERS[0], ITEMS])

    def vector(m: int, part: int) -> torch.Tensor:
        whole = model.items.weight[m] + linear(model.attributes, model.attribute_shares[m])
        whole = whole + model.item_factors.weight @ item_rows[m, :-1]
        return whole[part * DIM : (part + 1) * DIM]

    for row, (items, history, residual, time_gap, user, dense, _) in enumerate(zip(*batch, strict=True)):
        for place, item in enumerate(items):
            target = vector(item, 0)
            features = [target, dense[place], model.user_features[0].weight[user[1]]]
            p, q = user_rows[user[0]], item_rows[item]
            interest = p[:-1]
            if use_sequence:
                sequence = [
                    vector(history[i], 0)
                    + residual[i] * vector(history[i], 1)
                    + model.time_gaps.weight[time_gap[i]]
                    + model.positions[i]
                    for i in range(HISTORY)
                    if history[i] != PADDING
                ] + [target + model.positions[HISTORY]]
                for block in model.blocks:
                    sequence = [block_in_loops(block, sequence, position) for position in range(len(sequence))]
                features.append(sequence[-1])
                interest = interest + linear(model.history_factors, sequence[-1])
            deep = linear(model.output, functional.leaky_relu(linear(model.mlp[0], torch.cat(features))))
            expected = dense[place, 0] + interest @ q[:-1] + p[-1] + q[-1] + deep[0]
            torch.testing.assert_close(outputs[row, place], expected, rtol=0, atol=1e-6)


def test_attention_equals_that_of_torch():
    block = Block(DIM, HEADS, 0.0)
    torch.nn.init.normal_(block.attention.in_proj_bias)
    queries, sequence = torch.randn(4, 3, DIM), torch.randn(4, 6, DIM)
    padding = torch.arange(6) < torch.arange(4).unsqueeze(1)
    expected = block.attention(queries, sequence, sequence, padding, average_attn_weights=False)
    for a, b in zip(block.attend(queries, sequence, padding, to_itself=False), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    one = queries[:, :1]
    with_itself, its_padding = torch.cat([sequence, one], 1), functional.pad(padding, (0, 1))
    expected = block.attention(one, with_itself, with_itself, its_padding, average_attn_weights=False)
    for a, b in zip(block.attend(one, sequence, padding, to_itself=True), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_blocks", [1, 2])
def test_as_every_model(num_blocks):
    check_rows_do_not_mix(make_model(num_blocks=num_blocks), make_batch(4, 2))
    check_batch_of_one(make_model(num_blocks=num_blocks), make_batch(3))
    check_learns_one_batch(make_model(num_blocks=num_blocks), make_batch(32))
    check_reload(make_model(num_blocks=num_blocks), make_batch(4))


@pytest.mark.parametrize("num_blocks", [1, 2])
def test_padding_has_no_influence(num_blocks):
    model, batch = make_model(num_blocks=num_blocks), make_batch(7)
    is_padding = batch[1] == PADDING
    changed = [part.clone() for part in batch]
    changed[2][is_padding] = torch.randn(int(is_padding.sum()))
    changed[3][is_padding] = torch.randint(TIME_GAP_BUCKETS, (int(is_padding.sum()),)).int()
    torch.testing.assert_close(model(*batch[:-1]), model(*changed[:-1]), rtol=0, atol=1e-6)
    with torch.no_grad():
        model.items.weight[PADDING] += 7.0
    torch.testing.assert_close(model(*batch[:-1]), model(*changed[:-1]), rtol=0, atol=1e-6)


def test_predictions_stay_in_the_scale_and_clicks_are_probabilities():
    """Ratings from 0 to 100, which the model sees with a spread of 4."""
    model = make_model(target="rating", rating_range=[0.0, 100.0], rating_units=[-25.0, 25.0])
    logits, rating = torch.tensor([0.0, 3.0, 7.0]), torch.tensor([0.0, 75.0, 100.0])
    assert model.loss(logits, rating).item() == pytest.approx((1 + 1 + 4) / 3)
    assert model.predict(logits).tolist() == [0.0, 50.0, 100.0]
    click = make_model(target="click")
    assert click.predict(torch.tensor([0.0])).item() == 0.5
    batch = make_batch(8)
    batch[-1] = (batch[-1] > 3).float()
    expected = functional.binary_cross_entropy_with_logits(click(*batch[:-1]), batch[-1])
    torch.testing.assert_close(click.training_step(batch, 0), expected)


def test_starts_near_the_numbers_it_is_given():
    model = build(BST, SETTINGS, {"embedding_dim": 32, "hidden_units": [128, 64]})
    *inputs, _ = make_batch(64)
    assert (model.eval()(*inputs) - inputs[5][..., 0]).square().mean() < 0.2


def test_fused_behaviors_are_the_plain_ones():
    history = torch.tensor([[1, 1, 2], [3, 2, 2], [4, 4, 4]]).int()
    time_gap = torch.tensor([[0, 0, 5], [6, 6, 5], [1, 0, 0]]).int()
    tables = [torch.randn(size, dtype=torch.double, requires_grad=True) for size in ((6, 8), (7, 4), (3, 4))]
    batch = history, torch.randn(3, 3, dtype=torch.double), time_gap
    torch.testing.assert_close(FusedBehaviors.apply(*tables, *batch), behaviors(*tables, *batch))
    assert torch.autograd.gradcheck(lambda *given: FusedBehaviors.apply(*given, *batch), tables)


def test_losses_over_an_item_and_its_negatives():
    """In loops: the softmax takes log_q off the logits of all candidates; bce is the mean over them."""
    logits, log_q = torch.randn(4, 6), torch.randn(4, 6)
    target = torch.zeros(4, 6)
    target[:, 0] = 1
    model = make_model(target="item")
    for correction in (None, log_q):
        corrected = logits if correction is None else logits - correction
        expected = sum(-row[0] + math.log(sum(math.exp(value) for value in row.tolist())) for row in corrected) / 4
        torch.testing.assert_close(model.loss(logits, target, correction), expected)
    pairs = zip(logits.flatten().tolist(), target.flatten().tolist(), strict=True)
    expected = sum(math.log1p(math.exp(-value if label else value)) for value, label in pairs) / 24
    assert make_model(target="item", loss="bce").loss(logits, target).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("loss", ["softmax", "bce"])
def test_learns_which_item_comes_next(loss):
    model, batch = make_model(target="item", loss=loss), make_batch(32, 5)
    batch[-1] = functional.one_hot(torch.zeros(32, dtype=torch.long), 5).float()
    check_learns_one_batch(model, batch)
