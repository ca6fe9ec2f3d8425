"""Which server is asked, on a clock of our own."""

import logging

import pytest

from cua_agent.inference.vllm.router import Router


class Clock:
    now = 1.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def router_of(servers: int, clock: Clock) -> Router:
    return Router([f"http://s{i}" for i in range(servers)], 600, clock)


def test_conversations_are_dealt_round_and_stay(clock: Clock) -> None:
    router = router_of(3, clock)
    assert [router.pick(c) for c in "abcd"] == [0, 1, 2, 0]
    assert [router.pick(c) for c in "dcba"] == [0, 2, 1, 0]
    router.release("a")
    assert router.pick("a") == 1


def test_a_server_that_failed_is_tried_with_one_request_at_a_time_until_it_answers(clock: Clock) -> None:
    router = router_of(2, clock)
    assert (router.pick("a"), router.pick("b")) == (0, 1)
    router.failed(0, "s0 is dead")
    assert [router.pick(c) for c in "acd"] == [1, 1, 1]
    assert router.present() == [1]
    clock.now = 3.0
    assert router.pick("a") == 1  # it stays where its cache is now
    assert [router.pick(c) for c in "efg"] == [0, 1, 1]  # one tries it
    clock.now = 20.0
    assert router.pick("h") == 1  # still that one
    router.failed(0, "s0 is dead")
    clock.now = 23.9  # the pause has doubled
    assert [router.pick(c) for c in "ei"] == [1, 1]
    clock.now = 24.0
    assert router.pick("l") == 0
    router.answered(0)
    assert router.present() == [0, 1]
    assert {router.pick(c) for c in "jk"} == {0, 1}


def test_requests_that_were_under_way_do_not_lengthen_the_pause(clock: Clock) -> None:
    router = router_of(2, clock)
    for _ in range(64):
        router.failed(0, "s0 is dead")
    clock.now = 3.0
    assert router.pick("a") == 0


def test_when_all_failed_each_request_goes_to_the_one_that_is_due_first(clock: Clock) -> None:
    router = router_of(2, clock)
    router.failed(1, "s1 is dead")
    clock.now = 2.0
    router.failed(0, "s0 is dead")
    assert [router.pick(c) for c in "ab"] == [1, 1]
    assert router.present() == [0, 1]


def test_a_line_when_it_goes_and_one_when_it_is_back_and_none_for_a_hiccup(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    router = router_of(2, clock)
    router.failed(0, "s0 hiccups")
    router.answered(0)
    assert caplog.messages == []
    for clock.now in (10.0, 12.0, 20.0, 60.0):
        router.failed(0, "s0 is dead")
    clock.now = 65.0
    router.answered(0)
    assert caplog.messages == [
        "http://s0: s0 is dead; the other servers go on without it",
        "http://s0 answers again, after 55 s",
    ]
    caplog.clear()
    for clock.now in (100.0, 102.0):
        router.failed(0, "s0 is dead")
        router.failed(1, "s1 is dead")
    assert caplog.messages == [f"waiting up to 600 s: http://{s}: {s} is dead" for s in ("s0", "s1")]
