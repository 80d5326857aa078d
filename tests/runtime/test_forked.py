"""A forked child of a process that has used infopt and torch on many threads."""

import os
import threading

import pytest
import torch

import infopt
from infopt.runtime import forked

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]


class Mixed(torch.nn.Module):
    """Native kernels, and an operator that only torch has: it runs on torch's threads."""

    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.Linear(64, 96)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cumsum(torch.nn.functional.gelu(self.up(x)), 0) @ self.up.weight


@pytest.fixture(autouse=True)
def torch_has_used_its_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    torch.relu(torch.randn(500, 500))
    yield
    torch.set_num_threads(before)


def in_child(work) -> int:
    """The exit status of a forked child that runs `work`; a hanging one is killed."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = 0 if work() else 2
        finally:
            os._exit(status)
    waiter = threading.Timer(30, os.kill, (pid, 9))
    waiter.start()
    status = os.waitpid(pid, 0)[1]
    waiter.cancel()
    return status


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.numpy().tobytes() == b.numpy().tobytes()  # without torch's threads


@torch.no_grad()
def test_operators_of_torch_run_in_a_child():
    torch.manual_seed(0)
    model, x = Mixed().eval(), torch.randn(3000, 64)
    compiled = infopt.compile(model, (x,))
    expected = compiled(x)
    for _ in range(5):
        assert in_child(lambda: same(compiled(x), expected)) == 0
    thread_statuses = []
    thread = threading.Thread(
        target=lambda: thread_statuses.append(in_child(lambda: same(compiled(x), expected)))
    )
    thread.start()
    thread.join()
    assert thread_statuses == [0]


@torch.no_grad()
def test_a_child_can_compile():
    x = torch.randn(3000, 64)
    infopt.compile(Mixed().eval(), (x,))(x)

    def work() -> bool:
        torch.manual_seed(1)
        torch._dynamo.reset()
        model = Mixed().eval()
        compiled = torch.compile(model, backend="infopt")
        found, threads = compiled(x), torch.get_num_threads()
        torch.set_num_threads(1)
        return threads == 4 and torch.allclose(found, model(x), rtol=1e-3, atol=1e-2)

    assert in_child(work) == 0


def test_threads_are_counted_as_the_user_set_them():
    assert forked.thread_count() == 4

    def work() -> bool:
        with forked.torch_threads(), forked.torch_threads():
            inside = (torch.get_num_threads(), forked.thread_count())
        return (*inside, torch.get_num_threads(), forked.in_child()) == (1, 4, 4, True)

    assert in_child(work) == 0
    with forked.torch_threads():
        assert torch.get_num_threads() == 4 and not forked.in_child()


def test_a_lock_that_another_thread_held_is_free_in_the_child():
    lock, taken, done = forked.ForkSafeLock(), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            taken.set()
            done.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait()

    def work() -> bool:
        with lock:
            return True

    try:
        assert in_child(work) == 0
    finally:
        done.set()
        thread.join()
