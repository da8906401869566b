"""How gradients become an update: clipping, the optimizer, the scheduler, all or nothing."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from tests.support.harness import bits, same_bits, sgd
from torch import nn

import akkordeon as ak
from akkordeon.core.errors import ForeignParameterError, RecipeError
from akkordeon.pipeline.updater import Updater, clipped
from akkordeon.pipeline.weights import Weights


def updater_of(module, optimizer=sgd, clip_norm=None, rule=None):
    weights = Weights(module)
    return weights, Updater(weights, optimizer, rule or ak.Stash(), clip_norm, "gate/1")


def gradients_like(module, scale=1.0):
    return [torch.randn_like(p) * scale for p in module.parameters()]


def learn(weights, updater, gradients, staleness=0):
    updater.update([None if g is None else g.clone() for g in gradients], weights.now, staleness)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("norm", [0.1, 5.0])
def test_clipping_equals_torchs_bit_for_bit_and_writes_to_nothing(scale, norm):
    module = nn.Linear(7, 5)
    gradients = gradients_like(module, scale)
    was = [gradient.clone() for gradient in gradients]
    for parameter, gradient in zip(module.parameters(), gradients, strict=True):
        parameter.grad = gradient.clone()
    nn.utils.clip_grad_norm_(module.parameters(), norm)
    ours = clipped(gradients, norm)
    assert all(torch.equal(p.grad, g) for p, g in zip(module.parameters(), ours, strict=True))
    assert all(torch.equal(g, w) for g, w in zip(gradients, was, strict=True))


def test_clipping_leaves_out_what_has_no_gradient():
    assert clipped([None, None], 1.0) == [None, None]
    one = clipped([None, torch.tensor([3.0, 4.0])], 1.0)
    assert one[0] is None
    assert one[1].norm().item() == pytest.approx(1.0, abs=1e-5)


def test_it_updates_as_the_optimizer_alone_would():
    module, plain = nn.Linear(3, 2), None
    plain = copy.deepcopy(module)
    weights, updater = updater_of(module)
    optimizer = sgd(plain.parameters())
    for _ in range(5):
        gradients = gradients_like(plain)
        learn(weights, updater, gradients)
        for parameter, gradient in zip(plain.parameters(), gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
    assert same_bits(module, plain)


def test_the_scheduler_steps_once_per_update():
    def factory(params):
        optimizer = torch.optim.SGD(params, lr=1.0)
        return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.1)

    module = nn.Linear(1, 1, bias=False)
    weights, updater = updater_of(module, factory)
    moved = []
    for _ in range(5):
        before = module.weight.item()
        learn(weights, updater, [torch.ones(1, 1)])
        moved.append(round(before - module.weight.item(), 3))
    assert moved == [1.0, 1.0, 0.1, 0.1, 0.01]


def test_a_parameter_without_a_gradient_stays_under_momentum_and_weight_decay():
    module = nn.Linear(3, 2)
    weights, updater = updater_of(
        module, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1)
    )
    learn(weights, updater, gradients_like(module))
    bias = module.bias.detach().clone()
    learn(weights, updater, [torch.ones(2, 3), None])
    assert torch.equal(module.bias, bias)
    assert all(master.grad is None for master in weights.masters)


def test_an_optimizer_over_foreign_parameters_is_refused_by_gate_and_shape():
    stranger = nn.Linear(3, 2)
    sentence = r"the optimizer of gate/1 holds a parameter of shape \(2, 3\) that is not the gate's"
    with pytest.raises(ForeignParameterError, match=sentence):
        updater_of(nn.Linear(3, 2), lambda params: torch.optim.SGD(stranger.parameters(), lr=0.1))
    with pytest.raises(ForeignParameterError, match=sentence):
        updater_of(nn.Linear(3, 2), lambda params: torch.optim.SGD([*params, *stranger.parameters()], lr=0.1))


def test_a_function_that_gives_no_optimizer_is_refused():
    with pytest.raises(RecipeError, match="gave a list; it must return a"):
        updater_of(nn.Linear(3, 2), lambda params: list(params))


class HalfWay(torch.optim.SGD):
    """Updates its first parameter and breaks."""

    fail = True

    @torch.no_grad()
    def step(self, closure=None):
        for i, parameter in enumerate(self.param_groups[0]["params"]):
            if i == 1 and self.fail:
                raise ZeroDivisionError("half way")
            parameter.add_(parameter.grad)


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit])
def test_an_optimizer_that_raises_half_way_leaves_the_last_version(error, monkeypatch):
    module = nn.Linear(3, 2)
    weights, updater = updater_of(module, lambda params: HalfWay(params, lr=0.1))
    was, now = bits(module), weights.now

    def step():
        weights.masters[0].data.add_(1)
        raise error

    if error is SystemExit:
        updater._step = step
    with pytest.raises(error):
        learn(weights, updater, gradients_like(module))
    assert same_bits(module, was)
    assert weights.now is now
    assert all(torch.equal(m, w) for m, w in zip(weights.masters, now, strict=True))


def test_a_scheduler_that_raises_leaves_the_last_version_too():
    class Breaks(torch.optim.lr_scheduler.StepLR):
        def step(self, epoch=None):
            if self.last_epoch >= 0:
                raise ZeroDivisionError
            super().step()

    def factory(params):
        optimizer = torch.optim.SGD(params, lr=0.1)
        return optimizer, Breaks(optimizer, 1)

    module = nn.Linear(3, 2)
    weights, updater = updater_of(module, factory)
    was = bits(module)
    with pytest.raises(ZeroDivisionError):
        learn(weights, updater, gradients_like(module))
    assert same_bits(module, was)


def test_hooks_of_the_optimizer_are_called_before_and_after_each_step():
    calls = []

    def factory(params):
        optimizer = sgd(params)
        optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
        optimizer.register_step_post_hook(lambda *_: calls.append("after"))
        return optimizer

    module = nn.Linear(3, 2)
    weights, updater = updater_of(module, factory)
    for _ in range(2):
        learn(weights, updater, gradients_like(module))
    assert calls == ["before", "after"] * 2


def test_hooks_of_all_optimizers_are_called_too():
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    calls, module = [], nn.Linear(3, 2)
    hooks = [
        register_optimizer_step_pre_hook(lambda *_: calls.append("before")),
        register_optimizer_step_post_hook(lambda *_: calls.append("after")),
    ]
    try:
        weights, updater = updater_of(module)
        learn(weights, updater, gradients_like(module))
    finally:
        for hook in hooks:
            hook.remove()
    assert calls == ["before", "after"]


@pytest.mark.parametrize("how", ["hook", "hook of all", "wrapper"])
def test_what_is_put_around_a_step_after_the_first_update_is_called(how):
    """It was asked for once, when the gate was made."""
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    calls, made = [], []

    def factory(params):
        made.append(sgd(params))
        return made[0]

    weights, updater = updater_of(nn.Linear(3, 2), factory)
    learn(weights, updater, gradients_like(nn.Linear(3, 2)))
    hook, step = None, made[0].step
    if how == "hook":
        made[0].register_step_pre_hook(lambda *_: calls.append(1))
    elif how == "hook of all":
        hook = register_optimizer_step_pre_hook(lambda *_: calls.append(1))
    else:
        made[0].step = lambda: (calls.append(1), step())
    try:
        learn(weights, updater, gradients_like(nn.Linear(3, 2)))
    finally:
        if hook is not None:
            hook.remove()
    assert calls == [1]


def test_an_optimizer_with_hooks_may_write_to_its_gradients():
    """A replica pushed what the hook of its local optimizer had made of the gradient."""

    def factory(params):
        optimizer = sgd(params)
        optimizer.register_step_pre_hook(lambda optimizer, *_: None)
        return optimizer

    assert updater_of(nn.Linear(3, 2))[1].spares_gradients
    assert not updater_of(nn.Linear(3, 2), factory)[1].spares_gradients


def test_foreach_is_decided_for_the_optimizers_of_pytorch_alone():
    """Those of others may take None for something else than PyTorch does."""
    made = []

    class Own(torch.optim.Adam):
        pass

    for kind in (torch.optim.Adam, Own):
        updater_of(nn.Linear(3, 2), lambda params, kind=kind: made.append(kind(params)) or made[-1])
    assert [optimizer.param_groups[0]["foreach"] for optimizer in made] == [False, None]


@pytest.mark.parametrize("factory", [sgd, torch.optim.Adam])
def test_a_parameter_without_elements_is_no_reason_to_refuse_an_optimizer(factory):
    """All without elements lie at address 0, so the optimizer seemed to keep that of its parameter."""
    module = nn.Linear(3, 2)
    module.register_parameter("nothing", nn.Parameter(torch.empty(0, 3)))
    weights, updater = updater_of(module, factory)
    for _ in range(2):
        learn(weights, updater, gradients_like(module))


def test_without_an_optimizer_or_without_parameters_nothing_is_learned():
    module = nn.Linear(3, 2)
    weights, updater = updater_of(module, None)
    was = bits(module)
    learn(weights, updater, gradients_like(module))
    assert same_bits(module, was)
    weights, updater = updater_of(nn.ReLU())
    learn(weights, updater, [])


def test_frozen_parameters_stay_where_the_optimizer_holds_them_all():
    module = nn.Linear(3, 2)
    module.weight.requires_grad_(False)
    weights, updater = updater_of(module)
    was = bits(module)
    learn(weights, updater, [None, torch.ones(2)])
    assert torch.equal(module.weight, was["weight"])
    assert not torch.equal(module.bias, was["bias"])


def test_the_learner_gives_the_optimizer_what_the_rule_makes_of_a_gradient():
    class Doubles(ak.Rule):
        def correct(self, gradients, now, then, staleness, state):
            return [g * (staleness + 1) for g in gradients]

    module = nn.Linear(1, 1, bias=False)
    weights, updater = updater_of(module, lambda p: torch.optim.SGD(p, lr=1.0), rule=Doubles())
    before = module.weight.item()
    learn(weights, updater, [torch.ones(1, 1)], staleness=2)
    assert before - module.weight.item() == pytest.approx(3)


def test_a_step_that_somebody_wrapped_is_called():
    calls = []

    class Counting(torch.optim.SGD):
        @functools.wraps(torch.optim.SGD.step)  # which copies the mark of torch's own wrapper
        def step(self, *arguments, **named):
            calls.append(1)
            return super().step(*arguments, **named)

    sgd(nn.Linear(1, 1).parameters())  # the first optimizer of a class has torch wrap its step
    module = nn.Linear(3, 2)
    weights, updater = updater_of(module, lambda params: Counting(params, lr=0.1))
    learn(weights, updater, gradients_like(module))
    assert calls == [1]


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        (torch.optim.LBFGS, "LBFGS, whose step needs a closure"),
        (lambda params: torch.optim.SGD(params, lr=0.1, differentiable=True), "leave that out"),
        (lambda params: torch.optim.Muon(params), r"failed: ValueError: .*2D"),
        (lambda params: torch.optim.SGD(params, lr=-1.0), "gate/0 failed: ValueError: Invalid learning rate"),
    ],
    ids=["closure", "differentiable", "does not fit the weights", "raises"],
)
def test_an_optimizer_that_cannot_work_is_refused_before_anything_runs(factory, reason):
    with pytest.raises(RecipeError, match=reason):
        ak.run(ak.Network([ak.Gate(nn.Linear(3, 2), factory)]))


def test_an_update_that_would_not_be_finite_leaves_the_weights_and_says_so():
    module = nn.Linear(3, 2)
    weights, updater = updater_of(module, lambda params: torch.optim.Adam(params, eps=0.0))
    before = copy.deepcopy(module)
    gradients = [torch.ones(2, 3), torch.tensor([0.0, 1.0])]  # 0 / 0 at the first bias
    assert not updater.update(gradients, weights.now, 0)
    assert same_bits(module, before)
    assert updater.update([torch.ones(2, 3), torch.ones(2)], weights.now, 0)
    assert all(bool(weight.isfinite().all()) for weight in weights.now)


def test_without_weights_to_go_back_to_such_an_update_is_a_failure():
    module = nn.Linear(3, 2)
    weights = Weights(module, keep=False)
    updater = Updater(weights, lambda params: torch.optim.SGD(params, lr=1e38), ak.Latest(), None, "gate/0")
    with pytest.raises(ArithmeticError, match="not finite"):
        updater.update([torch.full((2, 3), 1e30), torch.ones(2)], weights.now, 0)


def test_a_sparse_table_is_updated_in_place_unless_a_cut_holds_it():
    plain_sgd = functools.partial(torch.optim.SGD, lr=0.05)  # momentum would move other rows, too
    module, plain = nn.Embedding(1000, 2, sparse=True), None
    plain = copy.deepcopy(module)
    weights, updater = updater_of(module, plain_sgd)
    optimizer = plain_sgd(plain.parameters())

    def step():
        for table in (plain, module):
            table(torch.tensor([3, 3, 7])).sum().backward()
        gradient = weights.now[0].grad
        weights.now[0].grad = None
        updater.update([gradient], weights.now, 0)
        optimizer.step()
        optimizer.zero_grad()

    memory = weights.now[0].data_ptr()
    step()
    assert weights.now[0].data_ptr() == memory
    pinned = weights.pin()
    seen = pinned[0].detach().clone()
    step()
    assert torch.equal(pinned[0], seen)
    held = weights.now[0].data_ptr()
    assert held != memory
    step()
    assert weights.now[0].data_ptr() == held
    assert torch.equal(weights.now[0], plain.weight)


def test_a_sparse_update_that_would_not_be_finite_is_taken_back():
    module = nn.Embedding(10, 2, sparse=True)
    before = copy.deepcopy(module)
    weights, updater = updater_of(module, lambda params: torch.optim.SGD(params, lr=1e38))
    (module(torch.tensor([4, 4])) * 1e30).sum().backward()
    assert not updater.update([weights.now[0].grad], weights.now, 0)
    assert same_bits(module, before)


@pytest.mark.parametrize(
    "factory",
    [
        lambda params: torch.optim.SGD(params, lr=1.0, momentum=0.9),
        lambda params: ak.ErrorFeedback(torch.optim.SGD(params, lr=1.0)),
    ],
    ids=["momentum", "error feedback"],
)
def test_rows_that_a_refused_update_moved_beside_those_of_its_gradient_are_taken_back(factory):
    """Rows with an earlier gradient kept what the refused update had done to them."""
    module = nn.Embedding(10, 2, sparse=True)
    weights, updater = updater_of(module, factory)

    def gradient(row, scale):
        (module(torch.tensor([row])) * scale).sum().backward()
        found, weights.now[0].grad = weights.now[0].grad, None
        return [found]

    assert updater.update(gradient(4, 1.0), weights.now, 0)
    before = copy.deepcopy(module)
    assert not updater.update(gradient(7, torch.inf), weights.now, 0)
    assert same_bits(module, before)


def on_a_plateau(params):
    optimizer = torch.optim.SGD(params, lr=1.0)
    return optimizer, torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)


def test_a_scheduler_that_wants_a_score_steps_with_each_round_of_a_validator():
    rates = []

    def factory(params):
        optimizer, scheduler = on_a_plateau(params)
        optimizer.register_step_post_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
        return optimizer, scheduler

    batches = [(torch.ones(2, 3), torch.zeros(2, 2))] * 9
    network = ak.Network([ak.Gate(nn.Linear(3, 2), factory)])
    with ak.run(network, engine=ak.Threads(workers=1)) as session:
        session.attach(
            ak.Sentinel.validate(
                batches[:1], lambda out, y: out.sum() * 0 + 1.0, every_updates=2, schedule_by="loss"
            )
        )
        session.attach(ak.Sentinel.train(batches, nn.functional.mse_loss))
        session.wait()
    assert rates[0] == 1.0
    assert rates[-1] < 1.0


def test_what_comes_as_a_scheduler_and_has_no_step_is_refused_before_the_first_update():
    """An update would have died of it, and with it the gate."""
    for given in (5, "cosine"):
        with pytest.raises(RecipeError, match=f"gave a {type(given).__name__} as its scheduler"):
            updater_of(nn.Linear(3, 2), lambda params, given=given: (sgd(params), given))
    with pytest.raises(RecipeError, match="gave a tuple; it must return a"):
        updater_of(nn.Linear(3, 2), lambda params: (sgd(params), None, None))


def test_a_scheduler_of_another_optimizer_is_refused():
    """It stepped with every update, and the learning rate of the gate never changed."""

    def factory(params):
        return sgd(params), torch.optim.lr_scheduler.StepLR(sgd(params), step_size=1)

    with pytest.raises(RecipeError, match="the scheduler of gate/1 sets the learning rate of another"):
        updater_of(nn.Linear(3, 2), factory)


def test_a_scheduler_of_the_optimizer_inside_another_is_taken_where_they_share_their_groups():
    class Around(torch.optim.Optimizer):
        def __init__(self, inner):
            super().__init__(inner.param_groups, {})
            self.inner, self.param_groups = inner, inner.param_groups

        def step(self, closure=None):
            self.inner.step()

    inner = []

    def factory(params):
        inner.append(torch.optim.SGD(params, lr=1.0))
        return Around(*inner), torch.optim.lr_scheduler.StepLR(*inner, step_size=1, gamma=0.5)

    module = nn.Linear(3, 2)
    weights, updater = updater_of(module, factory)
    learn(weights, updater, gradients_like(module))
    assert inner[0].param_groups[0]["lr"] == 0.5


def test_it_warns_where_nobody_gives_that_scheduler_a_score(monkeypatch, caplog):
    monkeypatch.setattr("akkordeon.pipeline.updater.UPDATES_WITHOUT_SCORE", 3)
    module = nn.Linear(3, 2)
    weights, updater = updater_of(module, on_a_plateau)
    for _ in range(2):
        learn(weights, updater, gradients_like(module))
    assert not caplog.messages
    for _ in range(2):
        learn(weights, updater, gradients_like(module))
    (warning,) = caplog.messages
    assert "give a validator schedule_by" in warning


def test_it_warns_by_name_of_parameters_that_never_had_a_gradient(monkeypatch, caplog):
    monkeypatch.setattr("akkordeon.pipeline.updater.UPDATES_WITHOUT_GRADIENT", 3)
    module = nn.Linear(3, 2)
    weights, updater = updater_of(module)
    learn(weights, updater, [torch.ones(2, 3), None])
    learn(weights, updater, [None, None])
    assert not caplog.messages
    learn(weights, updater, [torch.ones(2, 3), None])
    learn(weights, updater, [torch.ones(2, 3), None])
    (warning,) = caplog.messages
    assert warning.startswith("gate/1 has made 3 updates, and its 'bias' never had a gradient")


def test_schedule_by_names_a_score_that_is_there():
    with pytest.raises(RecipeError, match="schedule_by is by 'accuracy', but the scores are loss"):
        ak.Sentinel.validate([], nn.functional.mse_loss, schedule_by="accuracy")


def test_an_optimizer_function_of_named_parameters_gets_their_names():
    def factory(named_parameters):
        decayed, others = [], []
        for name, parameter in named_parameters:
            (others if name.endswith("bias") else decayed).append(parameter)
        groups = [{"params": decayed, "weight_decay": 0.5}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.SGD(groups, lr=0.1)

    module = nn.Linear(3, 2)
    plain = copy.deepcopy(module)
    weights, updater = updater_of(module, factory)
    optimizer = factory(plain.named_parameters())
    gradients = gradients_like(plain)
    learn(weights, updater, gradients)
    for parameter, gradient in zip(plain.parameters(), gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    assert same_bits(module, plain)
