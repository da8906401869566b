"""All of a module's state: copied, kept, put back, written by name."""

import pytest
import torch
from tests.support.harness import bits
from torch import nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.errors import RecipeError
from akkordeon.experiments.run_folder import load_weights, save_weights
from akkordeon.pipeline.module_copy import copied, overlapping
from akkordeon.pipeline.module_state import Statistics, evaluating, tensors_of, write

X, Y = torch.randn(8, 6, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4


def sgd(params):
    return torch.optim.SGD(params, lr=0.05)


class NonPersistent(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 4)
        self.register_buffer("mean", torch.zeros(6), persistent=False)

    def forward(self, x):
        if self.training:
            self.mean = 0.5 * self.mean + 0.5 * x.mean(0)
        return self.linear(x - self.mean)


class NoneAtFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 4)
        self.register_buffer("mean", None)

    def forward(self, x):
        if self.mean is None:
            self.mean = x.mean(0).detach()
        return self.linear(x - self.mean)


class Late(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 4)

    def forward(self, x):
        if not hasattr(self, "mean"):
            self.register_buffer("mean", x.mean(0).detach())
        return self.linear(x - self.mean)


class Extra(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 4)
        self.scale, self.seen = 1.0, torch.zeros(2)

    def get_extra_state(self):
        return {"scale": self.scale, "seen": (self.seen, [b"x", None])}

    def set_extra_state(self, state):
        self.scale = state["scale"]
        self.seen, (raw, nothing) = state["seen"]
        assert (raw, nothing) == (b"x", None)

    def forward(self, x):
        if self.training:
            self.scale *= 1.1
            self.seen += len(x)
        return self.linear(x) * self.scale + self.seen.sum() / 100


KINDS = [NonPersistent, NoneAtFirst, Late, Extra]


@pytest.mark.parametrize("kind", KINDS)
def test_the_module_of_a_session_computes_what_predict_computed(kind):
    with ak.run(ak.Network([ak.Gate(kind(), sgd)]), engine=ak.Threads(1)) as session:
        session.attach(ak.Sentinel.train([(X + 3, Y)] * 5, F.cross_entropy)).wait(30)
        predicted = session.predict(X, timeout=30)
        module = session.module().eval()
    assert torch.equal(module(X), predicted)


@pytest.mark.parametrize("kind", [NonPersistent, NoneAtFirst, Extra])
def test_kept_weights_compute_what_predict_computed(kind, tmp_path):
    network = ak.Network([ak.Gate(kind(), sgd)])
    with ak.run(network, engine=ak.Threads(1)) as session:
        session.attach(ak.Sentinel.train([(X + 3, Y)] * 5, F.cross_entropy)).wait(30)
        predicted = session.predict(X, timeout=30)
        save_weights(tmp_path / "w.safetensors", session.module())
    loaded = load_weights(tmp_path / "w.safetensors", network)
    assert torch.equal(loaded.module().eval()(X), predicted)


def test_extra_state_that_cannot_be_carried_is_refused_by_name():
    class Odd(nn.Linear):
        def get_extra_state(self):
            return {"what": object()}

        def set_extra_state(self, state):
            pass

    with pytest.raises(
        RecipeError, match=r"extra state '0\._extra_state' cannot be carried: it holds a object"
    ):
        tensors_of(nn.Sequential(Odd(2, 2)))


def test_a_copy_has_the_attributes_and_hooks_of_its_parameters():
    module = nn.Linear(3, 2)
    module.weight._no_weight_decay = True
    module.weight.register_hook(lambda gradient: gradient * 0)
    twin = copied(module)
    assert twin.weight._no_weight_decay
    assert twin.weight is not module.weight
    twin(torch.ones(1, 3)).sum().backward()
    assert not twin.weight.grad.any()
    assert twin.bias.grad.all()


def test_a_function_that_closes_over_the_module_closes_over_its_copy():
    class Scales(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.act = lambda x: x * self.scale
            self.table = {"act": lambda x, own=self: x * own.scale}

        def forward(self, x):
            return self.act(x) + self.table["act"](x)

    module = Scales()
    twin = copied(module)
    twin.scale.data.fill_(3.0)
    assert twin(torch.tensor(1.0)) == 6
    assert module(torch.tensor(1.0)) == 2


def test_parameters_that_share_memory_share_it_in_a_copy():
    one, other = nn.Linear(3, 2), nn.Linear(3, 2)
    other.weight.data = one.weight.data
    twin = copied(nn.Sequential(one, other))
    twin[0].weight.data.zero_()
    assert not twin[1].weight.any()
    assert one.weight.any()


def test_parts_of_one_memory_that_do_not_overlap_are_no_group():
    whole = torch.zeros(4)
    assert overlapping([whole[:2], whole[2:]]) == []
    assert overlapping([whole[:3], whole[2:], torch.zeros(2)]) == [[0, 1]]


def test_results_that_a_module_keeps_are_copied_without_their_graph():
    class Keeps(nn.Linear):
        def forward(self, x):
            self.last = super().forward(x)
            return self.last

    module = Keeps(3, 2)
    module(torch.ones(1, 3))
    assert torch.equal(copied(module).last, module.last)


def test_a_generator_that_a_module_keeps_is_copied_in_its_state():
    module = nn.Linear(3, 2)
    module.generator = torch.Generator().manual_seed(5)
    twin = copied(module)
    assert torch.equal(torch.rand(2, generator=module.generator), torch.rand(2, generator=twin.generator))


def test_a_part_in_evaluation_mode_stays_in_it():
    frozen = nn.BatchNorm1d(6).eval()
    with ak.run(
        ak.Network([ak.Gate(nn.Sequential(frozen, nn.Linear(6, 4)), sgd)]), engine=ak.Threads(1)
    ) as s:
        s.attach(ak.Sentinel.train([(X, Y)] * 3, F.cross_entropy)).wait(30)
        s.predict(X, timeout=30)
        s.attach(ak.Sentinel.train([(X, Y)] * 3, F.cross_entropy)).wait(30)
        module = s.module()
    assert module[0][0].num_batches_tracked == 0
    assert not module[0][0].training
    assert module[0][1].training


def test_training_flags_are_put_back_part_by_part():
    module = nn.Sequential(nn.Dropout().eval(), nn.Dropout())
    with evaluating(module):
        assert not any(part.training for part in module.modules())
    assert [part.training for part in module.modules()] == [True, False, True]


def test_what_has_no_place_in_a_module_is_refused():
    with pytest.raises(RecipeError, match=r"no part 'other' for 'other.weight'"):
        write({"other.weight": torch.ones(1)}, nn.Linear(1, 1))


def test_renewed_buffers_are_written_to_without_harm_to_the_old_and_can_be_put_back():
    module = nn.BatchNorm1d(3)
    buffers, was = Statistics(module), bits(module)
    before = buffers.now
    buffers.renew()
    module(torch.randn(8, 3))
    assert all(torch.equal(before[name], was[name]) for name in before)
    assert not torch.equal(module.running_mean, was["running_mean"])
    after = buffers.now
    buffers.roll_back()
    assert all(buffers.now[name] is before[name] for name in before)
    buffers.install(after)
    assert module.num_batches_tracked == 1


def test_a_buffer_shared_by_two_modules_stays_shared():
    class Shares(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = nn.Module(), nn.Module()
            self.one.register_buffer("scale", torch.ones(2))
            self.other.register_buffer("scale", self.one.scale)

    module = Shares()
    buffers = Statistics(module)
    buffers.renew()
    assert module.one.scale is module.other.scale


def test_a_buffer_that_a_forward_replaces_is_the_one_that_counts():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x):
            self.seen = self.seen + len(x)
            return x

    module = Counts()
    buffers = Statistics(module)
    buffers.renew()
    module(torch.ones(3))
    assert buffers.now["seen"] == 3
    buffers.roll_back()
    assert module.seen == 0
