"""Calls from many threads, forked processes, busy machines: right answers, nobody hangs."""

import os
import subprocess
import sys
import threading

import pytest
import torch

from infopt.runtime.plan import AtenStep, Dim


def expected(x, c):
    return (x + c[: x.shape[0]]) * 2 + x


def in_threads(count, work):
    """Run work(index) in `count` threads; the first exception is raised here."""
    errors = []

    def guarded(index):
        try:
            work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a call hangs"
    if errors:
        raise errors[0]


@pytest.mark.parametrize("threads", [1, 2, 4, 8])
def test_every_task_runs_exactly_once(make_program, builder, threads):
    builder.dims.append(Dim("n", 0, None, 0, 0))
    builder.add_input("x", (("d0",),))
    out = builder.buffer("output", ("d0", 8, "*"))
    for _ in range(20):
        builder.step("count", (out,), (), ("d0",))
    builder.output(out, (("d0",),), "torch.int64")
    # The counts start from what the fresh memory holds, so look at their growth.
    builder.steps.insert(0, zero_step(builder, out))
    program = make_program(builder.plan(), threads=threads)
    for n in [*range(40), 333, 1000]:
        assert program([torch.zeros(n)])[0].tolist() == [20] * n


def zero_step(builder, out):
    view = builder.view(out, (("d0",),), "torch.int64")
    return AtenStep("aten.zero_.default", ({"tensor": view},), ())


def test_eight_threads_share_one_program(make_program, adder, constant):
    program = make_program(adder, [constant])

    def work(index):
        generator = torch.Generator().manual_seed(index)
        for i in range(300):
            x = torch.randn((i * 37 + index * 11) % 200, generator=generator)
            assert torch.equal(program([x])[0], expected(x, constant))

    in_threads(8, work)


def test_threads_with_errors_among_them(make_program, adder, constant):
    program = make_program(adder, [constant])

    def work(index):
        for i in range(200):
            if (i + index) % 5 == 0:
                with pytest.raises(Exception, match="1000"):
                    program([torch.zeros(1001 + i)])
            x = torch.full((i % 50,), float(index))
            assert torch.equal(program([x])[0], expected(x, constant))

    in_threads(8, work)


def in_child(work):
    """Exit status of a forked child that runs `work`; a hanging one is killed."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    waiter = threading.Timer(30, os.kill, (pid, 9))
    waiter.start()
    status = os.waitpid(pid, 0)[1]
    waiter.cancel()
    return status


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_can_run(make_program, adder, constant):
    program = make_program(adder, [constant], 4)
    x = torch.arange(1000, dtype=torch.float32)
    y = program([x])[0]

    def check():
        assert program([x])[0].tolist() == y.tolist()

    for _ in range(20):
        assert in_child(check) == 0
        check()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_while_other_threads_run(make_program, adder, constant):
    program = make_program(adder, [constant], 4)
    x = torch.arange(1000, dtype=torch.float32)
    y = program([x])[0]
    stop = threading.Event()

    def busy():
        while not stop.is_set():
            program([x])

    threads = [threading.Thread(target=busy) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            assert in_child(lambda: program([x])[0].tolist() == y.tolist() or os._exit(3)) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_busy_machine_gives_right_answers(make_program, adder, constant):
    """Far more threads than cores, beside processes that never sleep."""
    hogs = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range(os.cpu_count() or 1)
    ]
    try:
        program = make_program(adder, [constant], threads=8)
        for i in range(200):
            x = torch.randn(500 + i)
            assert torch.equal(program([x])[0], expected(x, constant))
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
