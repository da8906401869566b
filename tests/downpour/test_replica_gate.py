"""A replica's gate at work: what it pushes and fetches when, and on which weights it works meanwhile."""

from __future__ import annotations

import contextlib
from functools import partial

import pytest
import torch
from tests.support.harness import backward, do, forward, sends
from torch import nn

import akkordeon as ak
from akkordeon.core.errors import DataError, RecipeError
from akkordeon.core.messages import Backward, Batch, Fault, Forget, Forward, Refused
from akkordeon.core.recovery.messages import Restarted
from akkordeon.core.shard_messages import Dropped, Fetch, Parameters, Push, Settle, Settled
from akkordeon.downpour.replica_gate import DROPPED_MAX, ReplicaGate
from akkordeon.downpour.sync_policy import SyncPolicy
from akkordeon.pipeline.stage import Position

SGD = partial(torch.optim.SGD, lr=0.5)
X = torch.tensor([[1.0, 2.0]])
G = torch.tensor([[1.0]])


def replica(module=None, optimizer=SGD, position=None, gate=None, **policy) -> ReplicaGate:
    """The only gate of a replica; its weight is (0, 0), so its gradient is X for each batch."""
    if module is None:
        module = nn.Linear(2, 1, bias=False)
        nn.init.zeros_(module.weight)
    return ReplicaGate(
        ak.Gate(module, optimizer, **(gate or {})),
        Position("r/gate/0", 0, **(position or {})),
        SyncPolicy(**policy),
        "shard/0",
    )


def weight(actor: ReplicaGate) -> list[float]:
    return actor.weights.now[0].detach().flatten().tolist()


def parameters(version: int, *values: float, **more) -> Parameters:
    return Parameters("shard/0", version, (torch.tensor([values or (0.0, 0.0)]),), **more)


def ready(**recipe) -> ReplicaGate:
    """One that has had its first weights, all zero."""
    actor = replica(**recipe)
    do(actor, forward(0, X), parameters(0), Forget("s", 0))
    return actor


def steps(actor: ReplicaGate, count: int, start: int = 1) -> list:
    """So many batches, one after the other; what it sent to its shard."""
    sent = []
    for number in range(start, start + count):
        sent += sends(do(actor, forward(number, X), backward(number, G)))
    return [message for message in sent if isinstance(message, Push | Fetch)]


def asks(message) -> bool:
    """Whether a message is answered with weights."""
    return isinstance(message, Fetch) or (isinstance(message, Push) and message.fetch)


def test_the_first_forward_of_all_waits_for_weights_of_a_shard():
    actor = replica()
    assert sends(do(actor, forward(0, X))) == [Fetch("r/gate/0", is_first=True)]
    assert sends(do(actor, forward(1, X))) == []
    out = sends(do(actor, parameters(7, 3.0, 4.0)), Forward)
    assert [message.batch.number for message in out] == [0, 1]
    assert out[0].payload.item() == 11.0


def test_in_the_background_work_goes_on_while_weights_are_on_their_way():
    actor = ready()
    assert [asks(message) for message in steps(actor, 1)] == [True]
    assert len(sends(do(actor, forward(9, X)), Forward)) == 1


def test_but_only_until_the_next_weights_fall_due():
    actor = ready()
    assert [asks(message) for message in steps(actor, 2)] == [True, False]
    assert sends(do(actor, forward(9, X))) == []
    asked, passed_on = sends(do(actor, parameters(1)))
    assert asked == Fetch("r/gate/0")
    assert passed_on.batch.number == 9


def test_told_to_wait_the_next_forward_does():
    actor = ready(wait=True)
    steps(actor, 1)
    assert sends(do(actor, forward(9, X))) == []
    assert len(sends(do(actor, parameters(1, 1.0, 1.0)), Forward)) == 1
    assert weight(actor) == [1.0, 1.0]


def test_forwards_that_wait_are_bounded_and_can_be_forgotten():
    actor = replica(position={"max_in_flight": 2})
    refused = sends(do(actor, *(forward(i, X) for i in range(3))), Refused)
    assert [message.batch.number for message in refused] == [2]
    out = sends(do(actor, Forget("s", 0), parameters(0)), Forward)
    assert [message.batch.number for message in out] == [1]


@pytest.mark.parametrize(("push_every", "fetch_every"), [(1, 1), (3, None), (3, 2), (2, 5), (4, 1)])
def test_pushes_and_fetches_come_after_so_many_steps_and_never_at_step_zero(push_every, fetch_every):
    actor = ready(push_every=push_every, fetch_every=fetch_every)
    pushed, fetched = [], []
    for step in range(1, 21):
        for message in steps(actor, 1, start=step):
            pushed += [step] * isinstance(message, Push)
            if asks(message):
                fetched.append(step)
                do(actor, parameters(step))
    assert pushed == list(range(push_every, 21, push_every))
    every = fetch_every or push_every
    assert fetched == list(range(every, 21, every))


def test_what_is_pushed_is_the_sum_and_not_the_mean():
    actor = ready(push_every=3)
    (push,) = (message for message in steps(actor, 3) if isinstance(message, Push))
    assert push.steps == 3
    assert push.payload[0].tolist() == [[3.0, 6.0]]
    (push,) = (message for message in steps(actor, 3, start=4) if isinstance(message, Push))
    assert push.payload[0].tolist() == [[3.0, 6.0]]


def test_local_steps_are_the_gates_own_optimizers_and_can_be_off():
    actor = ready(push_every=10)
    steps(actor, 2)
    assert weight(actor) == [-1.0, -2.0]
    still = ready(push_every=10, local_step=False)
    steps(still, 2)
    assert weight(still) == [0.0, 0.0]


def test_an_optimizer_that_writes_to_its_gradients_does_not_reach_the_push():
    optimizer = partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, foreach=True)
    actor = ready(optimizer=optimizer, push_every=1)
    for start in (1, 2):
        push = steps(actor, 1, start=start)[0]
        assert push.payload[0].tolist() == X.tolist()


class Overflows(torch.optim.SGD):
    """Its second step makes weights that are not finite."""

    steps = 0

    def step(self, closure=None):
        super().step()
        self.steps += 1
        if self.steps == 2:
            self.param_groups[0]["params"][0].data.fill_(torch.inf)


@pytest.mark.parametrize("differences", [False, True])
def test_a_batch_whose_local_step_was_taken_back_is_refused_and_not_pushed(differences):
    actor = ready(optimizer=partial(Overflows, lr=0.5), push_every=3, differences=differences)
    sent = sends([effect for n in (1, 2, 3, 4) for effect in do(actor, forward(n, X), backward(n, G))])
    assert [message.batch.number for message in sent if isinstance(message, Refused)] == [2]
    (push,) = (message for message in sent if isinstance(message, Push))
    assert [batch.number for batch in push.batches] == [1, 3, 4]
    assert push.payload[0].tolist() == ([[1.5, 3.0]] if differences else [[3.0, 6.0]])


def test_differences_of_a_sparse_table_are_not_lost_when_nothing_was_fetched_between():
    module = nn.Embedding(3, 2, sparse=True)
    actor = replica(module=module, push_every=1, fetch_every=100, differences=True)
    do(actor, forward(0, torch.tensor([0])), Parameters("shard/0", 0, (torch.zeros(3, 2),)))
    do(actor, Forget("s", 0))
    for number in (1, 2, 3):
        sent = sends(do(actor, forward(number, torch.tensor([1])), backward(number, torch.ones(1, 2))), Push)
        assert sent[0].payload[0].tolist() == [[0, 0], [0.5, 0.5], [0, 0]]


def test_pushes_are_clipped_as_the_gate_says():
    actor = ready(gate={"clip_norm": 1.0}, local_step=False)
    push = steps(actor, 1)[0]
    assert push.payload[0].norm().item() == pytest.approx(1.0, abs=1e-5)


def test_a_push_says_which_weights_its_oldest_gradient_goes_back_to():
    actor = ready(push_every=2, fetch_every=100)
    do(actor, forward(1, X), parameters(5), forward(2, X), parameters(9))
    (push,) = sends(do(actor, backward(2, G), backward(1, G)), Push)
    assert push.version == 0
    do(actor, forward(3, X), forward(4, X))
    (push,) = sends(do(actor, backward(3, G), backward(4, G)), Push)
    assert push.version == 9


def test_a_push_says_whose_batches_are_in_it():
    actor = ready(push_every=2)
    (push,) = (message for message in steps(actor, 2) if isinstance(message, Push))
    assert push.batches == (Batch("s", 1), Batch("s", 2))
    (push,) = (message for message in steps(actor, 2, start=3) if isinstance(message, Push))
    assert push.batches == (Batch("s", 3), Batch("s", 4))


def dropped(in_a_row: int) -> Dropped:
    return Dropped("shard/0", (Batch("s", in_a_row),), Fault.NOT_FINITE, "it is not finite", in_a_row)


def test_batches_of_a_dropped_push_are_refused_and_after_ten_in_a_row_the_gate_gives_up():
    actor = ready()
    for n in range(1, DROPPED_MAX):
        (refused,) = sends(do(actor, dropped(n)), Refused)
        assert (refused.batch, refused.gate) == (Batch("s", n), "shard/0")
    with pytest.raises(DataError, match="shard/0 dropped its last 10 pushes: it is not finite"):
        do(actor, dropped(DROPPED_MAX))


def test_when_a_sentinel_is_gone_what_was_gathered_of_its_batches_is_pushed_and_nobody_is_told():
    actor = ready(push_every=10)
    steps(actor, 3)
    push, settle = sends(do(actor, Forget("s")))
    assert (push.steps, settle) == (3, Settle("r/gate/0"))
    assert sends(do(actor, Settled("shard/0"))) == []
    do(actor, Settle("t"))
    assert sends(do(actor, Settled("shard/0", 1))) == [Settled("r/gate/0")]


def test_a_batch_of_a_sentinel_that_is_gone_does_not_ask_for_weights():
    actor = replica()
    assert sends(do(actor, Forget("s"), forward(0, X)), Fetch) == []


def test_differences_are_start_minus_now_so_that_subtracting_them_goes_the_same_way():
    actor = ready(push_every=2, differences=True, wait=True)
    do(actor, forward(1, X), backward(1, G), forward(2, X))
    (push,) = sends(do(actor, backward(2, G)), Push)
    assert push.payload[0].tolist() == [[1.0, 2.0]]
    assert weight(actor) == [-1.0, -2.0]
    do(actor, parameters(1, 5.0, 5.0))
    assert weight(actor) == [5.0, 5.0]


def test_steps_since_the_last_push_are_put_on_top_of_weights_that_come_in_the_background():
    actor = ready(push_every=2, differences=True)
    steps(actor, 2)
    steps(actor, 1, start=3)  # half a step of 0.5·X that no push had yet
    do(actor, parameters(4, 10.0, 10.0))
    assert weight(actor) == [9.5, 9.0]
    (push,) = (m for m in steps(actor, 1, start=4) if isinstance(m, Push))
    assert push.payload[0].tolist() == [[1.0, 2.0]]


class Clips(nn.Linear):
    """Writes to its weights in its forward, in the open or behind the back of autograd."""

    hidden = False

    def forward(self, x):
        with torch.no_grad():
            (self.weight.data if self.hidden else self.weight).clamp_(-0.5, 0.5)
        return super().forward(x)


class ClipsHidden(Clips):
    hidden = True


@pytest.mark.parametrize("module", [nn.Linear, Clips, ClipsHidden])
@pytest.mark.parametrize("differences", [False, True])
def test_fetched_weights_are_never_written_to_whatever_the_module_does(module, differences):
    """The shard's master weights moved by 3.0 with no push at all."""
    actor = replica(module=module(2, 1, bias=False), push_every=100, differences=differences)
    message = parameters(1, 1.0, 1.0)
    do(actor, message)
    with contextlib.suppress(RecipeError):
        steps(actor, 3)
    assert message.payload[0].tolist() == [[1.0, 1.0]]


def test_what_a_forward_writes_to_its_weights_is_pushed_with_differences():
    actor = replica(module=Clips(2, 1, bias=False), push_every=1, differences=True)
    do(actor, forward(0, X), parameters(1, 1.0, -1.0))
    (push,) = sends(do(actor, backward(0, G)), Push)
    assert push.payload[0].tolist() == [[1.0, 0.5]]  # 1 − (0.5 − 0.5 · 1), −1 − (−0.5 − 0.5 · 2)


@pytest.mark.parametrize("module", [Clips, ClipsHidden])
def test_and_is_refused_where_gradients_are_pushed_or_the_weight_does_not_train(module):
    actor = replica(module=module(2, 1, bias=False))
    do(actor, forward(0, X))
    with pytest.raises(RecipeError, match="writes to its weight 'weight' in the forward"):
        do(actor, parameters(1, 1.0, 1.0))
    frozen = module(2, 1)
    frozen.weight.data.fill_(3)
    frozen.weight.requires_grad_(False)
    actor = replica(module=frozen, differences=True)
    do(actor, forward(0, X))
    with pytest.raises(RecipeError, match="make it a buffer"):
        do(actor, Parameters("shard/0", 1, (torch.zeros(1),)))


def test_the_rule_that_keeps_no_weights_takes_a_copy():
    actor = ready(push_every=100, gate={"staleness": ak.Latest()})
    message = parameters(1, 1.0, 1.0)
    do(actor, message)
    steps(actor, 3)
    assert message.payload[0].tolist() == [[1.0, 1.0]]
    assert weight(actor) == [1.0 - 1.5, 1.0 - 3.0]


def test_a_batch_in_flight_keeps_its_weights_when_others_come():
    module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    torch.manual_seed(3)
    actor = replica(module, position={"previous": "gate/-1"}, local_step=False)
    first = tuple(p.detach().clone() for p in module.parameters())
    do(actor, forward(0, X), Parameters("shard/0", 0, first))
    do(actor, Parameters("shard/0", 1, tuple(p + 1 for p in first)))
    (back,) = sends(do(actor, backward(0, G)), Backward)
    torch.testing.assert_close(back.payload, G @ first[1] @ first[0])


def test_the_shard_can_change_how_often_it_pushes():
    actor = replica(push_every=8)
    do(actor, forward(0, X), parameters(0, push_every=2), Forget("s", 0))
    (push,) = steps(actor, 2)
    assert push.steps == 2


def test_only_one_fetch_is_under_way():
    actor = ready(push_every=1)
    do(actor, *(forward(i, X) for i in range(1, 5)))
    pushes = sends(do(actor, *(backward(i, G) for i in range(1, 5))), Push)
    assert [push.fetch for push in pushes] == [True, False, False, False]


def test_asked_to_settle_it_pushes_the_rest_and_says_so_when_the_shard_has_it():
    actor = ready(push_every=10)
    steps(actor, 3)
    push, settle = sends(do(actor, Settle("trainer")))
    assert push.steps == 3
    assert settle == Settle("r/gate/0")
    (effect,) = do(actor, Settled("shard/0"))
    assert (effect.to, effect.message) == ("trainer", Settled("r/gate/0"))
    assert sends(do(actor, Settle("trainer")), Push) == []


def test_when_a_shard_was_made_anew_it_is_asked_again_for_weights_and_to_settle():
    actor = ready(push_every=10)
    do(actor, Settle("trainer"))
    again = sends(do(actor, Restarted("shard/0")))
    assert again == [Fetch("r/gate/0"), Settle("r/gate/0")]
    assert sends(do(actor, Settled("shard/0"), Settled("shard/0"))) == [Settled("r/gate/0")]


def test_compressed_pushes_carry_what_was_lost_to_the_next():
    actor = ready(compression="int8")
    x = torch.tensor([[1.0, 0.3]])
    arrived = torch.zeros(1, 2)
    for number in range(1, 6):
        push = sends(do(actor, forward(number, x), backward(number, G), parameters(number)), Push)[0]
        arrived += push.payload[0] * push.scales[0]
    assert torch.allclose(arrived, 5 * x, atol=1.0 / 127)


def test_buffers_travel_with_pushes():
    actor = replica(nn.BatchNorm1d(2), optimizer=SGD)
    fetched = Parameters("shard/0", 0, (torch.ones(2), torch.zeros(2)))
    do(actor, forward(0, torch.randn(4, 2)), fetched)
    (push,) = sends(do(actor, backward(0, torch.ones(4, 2))), Push)
    assert push.buffers["num_batches_tracked"].item() == 1


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"push_every": 0}, "push_every is at least 1"),
        ({"fetch_every": 0}, "fetch_every is at least 1"),
        ({"compression": "zip"}, "compression is None"),
        ({"differences": True, "local_step": False}, "no difference to push"),
    ],
)
def test_a_sync_policy_that_cannot_be_is_refused(wrong, sentence):
    with pytest.raises(RecipeError, match=sentence):
        SyncPolicy(**wrong)
