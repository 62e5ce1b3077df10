from __future__ import annotations

from llmcls.common.heartbeat import Pulse, beat, pulse, waiting


def test_a_pulse_says_what_is_done_and_how_often_it_went_on() -> None:
    before = pulse().beats
    beat("step", 7)
    beat("saving")
    assert pulse() == Pulse(before + 2, "saving", False)
    beat("step", 8)
    with waiting(), waiting():
        assert pulse() == Pulse(before + 3, "step 8", True)
    assert not pulse().waits
