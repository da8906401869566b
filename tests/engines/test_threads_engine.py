"""What is the threads engine's own: its workers, and how many threads each may use."""

import pytest
import torch
from tests.support.harness import WAIT_S, batches_of
from torch import Tensor, nn
from torch.nn import functional as F

import akkordeon as ak


class Looks(nn.Linear):
    """Says how many intra-op threads it computes with."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen = torch.get_num_threads()
        assert self.seen == self.expected
        return super().forward(x)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_uses_as_many_threads_for_an_operation_as_it_is_given(workers, threads):
    module = Looks(6, 4)
    module.expected = threads
    network = ak.Network([ak.Gate(module, lambda params: torch.optim.SGD(params, lr=0.1))])
    with ak.run(network, ak.Threads(workers, intra_op_threads=threads)) as session:
        trained = session.attach(ak.Sentinel.train(batches_of(3), F.cross_entropy)).wait(WAIT_S)
    assert trained.batches.trained == 3
    assert torch.get_num_threads() == 1


def test_fewer_than_one_thread_is_refused():
    with pytest.raises(ak.errors.RecipeError, match="intra_op_threads"):
        ak.Threads(intra_op_threads=0)
