"""Muon with AdamW, and error feedback: pipeline/optimizers/."""

from __future__ import annotations

import copy
import pickle
from itertools import pairwise

import pytest
import torch
from tests.support.harness import WAIT_S, batches_of, same_bits
from torch import nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.errors import RecipeError
from akkordeon.experiments.planning.blocks import learn_alike
from akkordeon.experiments.presets import OPTIMIZERS, optimizer_named
from akkordeon.pipeline.learning.optimizer import with_lr_times
from akkordeon.pipeline.updater import Updater
from akkordeon.pipeline.weights import Weights

LR = 0.01


def model():
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4))


def step(network, optimizer, x, y):
    optimizer.zero_grad()
    F.cross_entropy(network(x), y).backward()
    optimizer.step()


def test_muon_has_the_matrices_and_adamw_the_rest():
    together, apart = model(), model()
    ours = ak.muon(together.named_parameters(), lr=LR)
    names = dict(apart.named_parameters())
    muon = torch.optim.Muon(
        [names["0.weight"], names["2.weight"]],
        lr=LR,
        momentum=0.95,
        weight_decay=0.01,
        adjust_lr_fn="match_rms_adamw",
    )
    adamw = torch.optim.AdamW([names["0.bias"], names["2.bias"]], lr=LR, betas=(0.9, 0.95), weight_decay=0.01)
    for x, y in batches_of(5):
        step(together, ours, x, y)
        muon.zero_grad()
        step(apart, adamw, x, y)
        muon.step()
    assert same_bits(together, apart)


def test_embeddings_and_heads_are_adamws():
    parts = {"emb": nn.Embedding(7, 5), "mix": nn.Linear(5, 5), "lm_head": nn.Linear(5, 7, bias=False)}
    optimizer = ak.muon(nn.ModuleDict(parts).named_parameters())
    of_muon, of_adamw = (group["params"] for group in optimizer.param_groups)
    assert [tuple(p.shape) for p in of_muon] == [(5, 5)]
    assert sorted(tuple(p.shape) for p in of_adamw) == [(5,), (7, 5), (7, 5)]


def of_muon(module):
    """Names of the parameters that Muon has."""
    ours = {id(p) for p in ak.muon(module.named_parameters()).param_groups[0]["params"]}
    return [name for name, p in module.named_parameters() if id(p) in ours]


def test_attention_of_many_heads_is_no_head():
    """The "head" within "multihead_attn" had the matrices of a decoder's attention be AdamW's."""
    layer = nn.TransformerDecoderLayer(8, 2, 16)
    assert of_muon(layer) == [name for name, p in layer.named_parameters() if p.ndim == 2]


@pytest.mark.parametrize(
    ("name", "is_muons"),
    [(other, True) for other in ("ensemble", "member", "overhead", "multi_head_attn")]
    + [
        (table, False)
        for table in ("tok_emb", "embed_tokens", "head2", "unembed", "posEmb", "lmHead", "LMHead")
    ],
)
def test_what_a_matrix_is_goes_by_the_words_of_its_name(name, is_muons):
    assert of_muon(nn.ModuleDict({name: nn.Linear(3, 3, bias=False)})) == [f"{name}.weight"] * is_muons


def test_a_model_without_matrices_leaves_muon_none():
    of_muon, of_adamw = (
        group["params"] for group in ak.muon(nn.LayerNorm(4).named_parameters()).param_groups
    )
    assert (len(of_muon), len(of_adamw)) == (0, 2)


def test_gates_with_matrices_go_on_from_gates_without(tmp_path):
    """One of a normalisation alone had one group, and one of layers two: neither could take up the other."""
    torch.manual_seed(5)
    network, batches = (
        nn.Sequential(nn.Linear(6, 9), nn.LayerNorm(9), nn.Linear(9, 4, bias=False)),
        batches_of(12),
    )

    def run(part, cut_before, sentinel, **resume):
        gates = ak.Network.from_module(network, None, optimizer_named("muon", LR), cut_before=cut_before)
        with ak.run(gates, engine=ak.Threads(1), **resume) as session:
            session.attach(ak.Sentinel.train(part, F.cross_entropy, name=sentinel)).wait(timeout=WAIT_S)
            return session.checkpoint(tmp_path), session.module()

    _, whole = run(batches, ["2"], "whole")
    kept, _ = run(batches[:5], ["1", "2"], "first")
    _, again = run(batches[5:], ["2"], "second", resume=kept)
    assert same_bits(again, whole)


def test_error_feedback_adds_what_the_update_before_was_wrong_by():
    w = nn.Parameter(torch.tensor([1.0]))
    optimizer = ak.ErrorFeedback(torch.optim.SGD([w], lr=0.5), c=1.0)
    seen = []
    for gradient in (2.0, 3.0, None, 4.0, 6.0):
        w.grad = None if gradient is None else torch.tensor([gradient])
        optimizer.step()
        seen.append(w.item())
    # u = 1, 1.5, none, 2, 3: w - 1; w - 1.5 - 0.5; the same; w - 2, as if for the first time; w - 3 - 1
    assert seen == [0.0, -2.0, -2.0, -4.0, -8.0]


@pytest.mark.parametrize(
    ("factors", "steps"),
    [((1, 1, 4, 1, 1), (1, 1, 4, 1, 1)), ((2, 0, 1, 1), (2, 0, 1, 1)), ((0, 8, 0.5), (0, 8, 0.5))],
)
def test_error_feedback_steps_by_the_learning_rate_of_the_moment(factors, steps):
    """After a boost it took back what the boost had made, as the update before was larger."""
    w = nn.Parameter(torch.tensor([0.0]))
    optimizer = ak.ErrorFeedback(torch.optim.SGD([w], lr=0.5))
    seen = [0.0]
    for factor in factors:
        w.grad = torch.tensor([-2.0])
        with with_lr_times(optimizer, factor):
            optimizer.step()
        seen.append(w.item())
    assert [after - before for before, after in pairwise(seen)] == [*steps]


def test_error_feedback_forgets_an_update_that_was_refused():
    """The update after it made up for infinity, and was refused as well."""
    weight = nn.Linear(1, 1, bias=False)
    nn.init.ones_(weight.weight)
    network = ak.Network([ak.Gate(weight, lambda params: ak.ErrorFeedback(torch.optim.SGD(params, lr=1e10)))])
    slopes = (2e-10, 1e30, 2e-10, 2e-10)  # updates of 2, of infinity, and of 2 again
    batches = [(torch.ones(1, 1), torch.full((1, 1), slope)) for slope in slopes]
    trainer = ak.Sentinel.train(batches, lambda output, slope: (output * slope).mean())
    with ak.run(network, engine=ak.Threads(1)) as session:
        attached = session.attach(trainer)
        attached.wait(timeout=WAIT_S)
        assert attached.batches.refused == 1
        (left,) = session.module().parameters()
    assert left.item() == pytest.approx(1 - 2 - 2 - 2)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_batch_in_flight_gives_the_bits_of_the_plain_loop(name):
    make = optimizer_named(name, LR)
    network, batches = ak.Network.from_module(model(), 1, make), batches_of(12)
    with ak.run(network, engine=ak.Threads(1)) as session:
        session.attach(ak.Sentinel.train(batches, F.cross_entropy)).wait(timeout=WAIT_S)
        ours = session.module()
    plain = model()
    by_name = "muon" in name or name == "basis-rotation"
    optimizer = make(plain.named_parameters() if by_name else plain.parameters())
    for x, y in batches:
        step(plain, optimizer, x, y)
    assert same_bits(ours, plain)


@pytest.mark.parametrize("name", ["nadam", "muon", "adamw-ef", "muon-ef"])
def test_a_run_taken_up_has_the_bits_of_the_one_that_never_stopped(name, tmp_path):
    network, batches = ak.Network.from_module(model(), 2, optimizer_named(name, LR)), batches_of(12)

    def run(part, sentinel, **resume):
        with ak.run(network, engine=ak.Threads(1), **resume) as session:
            session.attach(ak.Sentinel.train(part, F.cross_entropy, name=sentinel)).wait(timeout=WAIT_S)
            return session.checkpoint(tmp_path), session.module()

    _, whole = run(batches, "whole")
    kept, _ = run(batches[:5], "first")
    _, again = run(batches[5:], "second", resume=kept)
    assert same_bits(again, whole)


def test_a_copy_of_the_state_goes_on_as_the_original_does():
    one, other = model(), model()
    ours = ak.ErrorFeedback(ak.muon(one.named_parameters(), lr=LR))
    batches = batches_of(6)
    for x, y in batches[:3]:
        step(one, ours, x, y)
    other.load_state_dict(one.state_dict())
    twin = ak.ErrorFeedback(ak.muon(other.named_parameters(), lr=LR))
    twin.load_state_dict(copy.deepcopy(ours.state_dict()))
    for x, y in batches[3:]:
        step(one, ours, x, y)
        step(other, twin, x, y)
    assert same_bits(one, other)


# ── what an optimizer is composed of ─────────────────────────────────────────────────────────────────


def around(kind, **options):
    return lambda params: ak.ErrorFeedback(kind(params, lr=LR, **options))


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        (around(torch.optim.LBFGS), "is LBFGS, whose step needs a closure"),
        (around(torch.optim.SGD, differentiable=True), r"is SGD\(differentiable=True\)"),
    ],
)
def test_an_optimizer_that_cannot_work_is_refused_inside_another_too(factory, reason):
    """It failed on its first update, in the run."""
    with pytest.raises(RecipeError, match=reason):
        ak.run(ak.Network([ak.Gate(nn.Linear(3, 2), factory)]))


def test_the_state_of_another_optimizer_inside_is_refused(tmp_path):
    """All were of the kind ErrorFeedback: the first update failed with a KeyError."""

    def run(kind, **resume):
        network = ak.Network.from_module(model(), 1, around(kind))
        with ak.run(network, engine=ak.Threads(1), **resume) as session:
            session.attach(ak.Sentinel.train(batches_of(3), F.cross_entropy)).wait(timeout=WAIT_S)
            return session.checkpoint(tmp_path)

    kept = run(torch.optim.SGD)
    with pytest.raises(RecipeError, match=r"ErrorFeedback\(SGD\), and its recipe has ErrorFeedback\(AdamW\)"):
        run(torch.optim.AdamW, resume=kept)


class WritesToGradients(torch.optim.SGD):
    """As an optimizer of the user's may."""


def with_a_hook(params, lr):
    optimizer = torch.optim.SGD(params, lr=lr)
    optimizer.register_step_pre_hook(lambda *_: None)
    return optimizer


@pytest.mark.parametrize(
    ("kind", "spares"), [(torch.optim.SGD, True), (WritesToGradients, False), (with_a_hook, False)]
)
def test_gradients_are_spared_only_if_the_optimizer_inside_spares_them(kind, spares):
    updater = Updater(Weights(nn.Linear(3, 2)), around(kind), ak.Stash(), None, "gate/0")
    assert updater.spares_gradients is spares


def test_gates_do_not_learn_alike_where_optimizers_inside_are_others():
    """A plan merged gates with ErrorFeedback into one, which had the optimizer of the first."""
    kinds = (torch.optim.SGD, torch.optim.AdamW)
    assert not learn_alike([ak.Gate(nn.Linear(3, 3), around(kind)) for kind in kinds])
    same = around(torch.optim.SGD)
    assert learn_alike([ak.Gate(nn.Linear(3, 3), same) for _ in range(2)])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_a_copy_with_its_model_goes_on_as_the_original_does(copied):
    """It had no parts."""
    one = model()
    ours = ak.ErrorFeedback(ak.muon(one.named_parameters(), lr=LR), c=0.5)
    first, *others = batches_of(4)
    step(one, ours, *first)
    other, twin = copied((one, ours))
    for x, y in others:
        step(one, ours, x, y)
        step(other, twin, x, y)
    assert same_bits(one, other)


def test_more_parameters_are_refused_once_it_is_made():
    """They were in its groups, and no optimizer in it updated them."""
    optimizer = ak.ErrorFeedback(torch.optim.SGD(nn.Linear(3, 2).parameters(), lr=LR))
    with pytest.raises(
        RecipeError, match=r"^ErrorFeedback\(SGD\) takes no more parameters, .*; make it anew"
    ):
        optimizer.add_param_group({"params": [*nn.Linear(2, 2).parameters()]})
    assert len(optimizer.param_groups) == 1


def test_a_closure_computes_the_gradients_of_the_step():
    """It was called without gradients, and after a look at which parameters have one."""
    one, other = model(), model()
    ours = ak.ErrorFeedback(torch.optim.SGD(one.parameters(), lr=LR))
    theirs = ak.ErrorFeedback(torch.optim.SGD(other.parameters(), lr=LR))
    for x, y in batches_of(3):

        def closure(x=x, y=y):
            ours.zero_grad()
            loss = F.cross_entropy(one(x), y)
            loss.backward()
            return loss

        assert ours.step(closure).requires_grad
        step(other, theirs, x, y)
    assert same_bits(one, other)


def test_the_rate_that_a_scheduler_of_the_optimizer_inside_sets_after_loading_is_kept():
    """The optimizer inside had the groups of before until its next step, and a plateau is seen before it."""
    weights = [nn.Parameter(torch.zeros(1))]
    inside = torch.optim.SGD(weights, lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(inside, factor=0.5, patience=0)
    optimizer = ak.ErrorFeedback(inside)
    optimizer.load_state_dict(optimizer.state_dict())
    for score in (1.0, 2.0):
        scheduler.step(score)
    assert optimizer.param_groups[0]["lr"] == 0.5
