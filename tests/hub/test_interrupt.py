"""Signals that come at a bad moment: none is lost, and a second one need not wait."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from ktops.hub.interrupt import deferred_signals


class InterruptedDestructor:
    """Python swallows what a destructor raises: the place where an interrupt gets lost."""

    def __del__(self) -> None:
        interrupt()


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupt_in_a_destructor_is_not_lost():
    with pytest.raises(KeyboardInterrupt), deferred_signals() as act:
        work_that_swallows(act)


def work_that_swallows(act) -> None:
    InterruptedDestructor()
    act()
    pytest.fail("the interrupt is lost")


def test_one_that_comes_when_the_work_has_just_ended_is_not_lost():
    with pytest.raises(KeyboardInterrupt), deferred_signals():
        interrupt()


def test_an_interrupt_beats_the_error_of_the_work():
    with pytest.raises(KeyboardInterrupt), deferred_signals():
        work_that_fails()


def work_that_fails() -> None:
    interrupt()
    raise ValueError


def test_the_second_interrupt_acts_at_once():
    happened = []
    with pytest.raises(KeyboardInterrupt), deferred_signals():
        work_that_goes_on(happened)
    assert happened == ["goes on", "acts"]


def work_that_goes_on(happened: list[str]) -> None:
    interrupt()
    happened.append("goes on")
    try:
        interrupt()
    finally:
        happened.append("acts" if isinstance(sys.exception(), KeyboardInterrupt) else "lost")


def test_what_the_process_ignores_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with deferred_signals() as act:
            interrupt()
            act()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_the_handlers_are_back_afterwards():
    with deferred_signals():
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
