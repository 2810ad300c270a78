"""Signals: frozen facts, and a sink that fails alone."""

from __future__ import annotations

import dataclasses
import typing

import pytest

from springtide.signals import FanOut, NullSink, ServiceChanged, Signal


class Ears:
    def __init__(self, *, deaf: bool = False) -> None:
        self.heard: list[Signal] = []
        self._deaf = deaf

    def emit(self, signal: Signal) -> None:
        if self._deaf:
            raise OSError("no ears")
        self.heard.append(signal)


def test_a_sink_that_raises_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    """The fault is logged with its signal's kind; whoever emits hears nothing of it."""
    first, last = Ears(), Ears()
    signal = ServiceChanged("pool", "running")
    FanOut([first, Ears(deaf=True), last]).emit(signal)
    assert first.heard == last.heard == [signal]
    assert "ServiceChanged" in caplog.text and "no ears" in caplog.text


def test_nobody_listening_is_fine() -> None:
    """The default of a layer used alone."""
    NullSink().emit(ServiceChanged("pool", "running"))


@pytest.mark.parametrize("signal", typing.get_args(Signal))
def test_a_signal_is_a_frozen_fact(signal: type) -> None:
    """Sinks may keep signals: nobody changes them afterwards."""
    assert dataclasses.is_dataclass(signal)
    assert signal.__dataclass_params__.frozen  # type: ignore[attr-defined]  # every dataclass has it
    assert "__slots__" in vars(signal)
