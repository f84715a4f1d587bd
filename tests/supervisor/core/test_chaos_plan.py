"""The schedule of chaos: from a seed alone, complete, and such that a sound run survives it."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from supervisor.core.chaos import plan
from supervisor.core.chaos.plan import Blow, Cell, Job, Round
from trainer.rundir.codes import Phase
from trainer.rundir.records import faults
from trainer.rundir.records.fault_kinds import DAMAGE, FAULTS, Moment, Tier

KINDS = list(FAULTS)
BEFORE_A_STEP = (Moment.STARTUP, Moment.RESTORE)
kinds = st.lists(st.sampled_from(KINDS), min_size=1, unique=True)
jobs = st.builds(
    Job,
    steps=st.integers(200, 4000),
    nproc=st.integers(1, 4),
    every=st.sampled_from([0, 1, 7, 20]),
    moments=st.just(tuple(Moment)),
    tiers=st.sampled_from([tuple(Tier), (Tier.MEMORY,)]),
)
sizes = st.integers(1, 8)
seeds = st.integers(0, 10**6)


def rounds(seed: int, kinds: list[str], job: Job, size: int, count: int) -> list[Round]:
    return list(plan.schedule(random.Random(seed), kinds, job, size, count, stride=2 * size))


@given(seeds, kinds, jobs, sizes, st.integers(1, 40))
def test_the_same_seed_is_the_same_schedule(seed: int, kinds: list[str], job: Job, size: int, count: int) -> None:
    """A schedule can be had again, also when it was cut off: the first rounds of an endless one."""
    first = rounds(seed, kinds, job, size, count)
    assert rounds(seed, kinds, job, size, count) == first
    endless = plan.schedule(random.Random(seed), kinds, job, size, None, stride=2 * size)
    again = plan.schedule(random.Random(seed), kinds, job, size, None, stride=2 * size)
    assert [next(endless) for _ in range(3)] == [next(again) for _ in range(3)]


@given(seeds, kinds, jobs, sizes)
def test_every_fault_occurs(seed: int, kinds: list[str], job: Job, size: int) -> None:
    """As many faults as there are kinds, and each is among them; helpers come on top."""
    struck = [b.kind for r in rounds(seed, kinds, job, size, len(kinds)) for b in r.blows if not b.helper]

    assert sorted(struck) == sorted(kinds)


@given(seeds, kinds, jobs, sizes, st.integers(1, 40))
@example(24068, ["kill", "term", "kill-flush", "stop", "torn", "exc"], Job(200, 1, 20), 7, 16)
def test_a_sound_run_survives_it(seed: int, kinds: list[str], job: Job, size: int, count: int) -> None:
    """Nothing in a round looks like a bug of the script: no fault twice at one step, no two failures in a row before
    the first step, no fault that is armed twice in the same words; and each can strike before the last step."""
    for round_ in rounds(seed, kinds, job, size, count):
        parsed = [faults.parse_fault(blow.spec) for blow in round_.blows]
        assert len({blow.spec for blow in round_.blows}) == len(parsed)
        assert all((f.step or 0) < job.steps - 1 for f in parsed), round_
        assert all(f.rank is None or f.rank < job.nproc for f in parsed)
        if job.every > 1:
            # Nor does a rank stand still at the step of a save, which the others then wait in.
            assert all(
                f.step % job.every or f.phase is Phase.SAVE or b.moment is Moment.STANDBY
                for f, b in zip(parsed, round_.blows, strict=True)
                if f.step is not None and b.kind in ("hang", "gil")
            )
        inside = [f.step for f, b in zip(parsed, round_.blows, strict=True) if FAULTS[b.kind].ends and not f.waits]
        assert len(set(inside)) == len(inside), round_
        before: Blow | None = None
        for blow, fault in zip(round_.blows, parsed, strict=True):
            if blow.moment in BEFORE_A_STEP and fault.step is not None:
                assert before is not None and before.moment is Moment.STEP and FAULTS[before.kind].carries, round_
                assert faults.parse_fault(before.spec).step == fault.step
            if (
                blow.moment is Moment.STANDBY
                and before is not None
                and faults.parse_fault(before.spec).step == fault.step
            ):
                assert "hang" not in FAULTS[before.kind].causes, "another standby may be warming until it is found"
            before = blow
        assert (
            sum(b.moment is Moment.STARTUP and f.step is None for b, f in zip(round_.blows, parsed, strict=True)) <= 1
        )


@given(seeds, jobs, sizes)
def test_what_the_first_save_shows_is_not_cut_off(seed: int, job: Job, size: int) -> None:
    """A fault of the first attempt's start that only a save or a restore can show is not in a round with one that ends
    that attempt before its first save."""
    for round_ in plan.pack(random.Random(seed), plan.matrix(KINDS, job.moments), job, size):
        opening = [b for b in round_.blows if b.moment is Moment.STARTUP and "step=" not in b.spec]
        if any(FAULTS[b.kind].before for b in opening):
            assert not any(b.moment is Moment.EARLY for b in round_.blows), round_


@given(seeds, jobs, sizes)
def test_the_matrix_is_whole(seed: int, job: Job, size: int) -> None:
    """Every cell is in one round, which is of its tier where that can be had, and its spec means its moment."""
    cells = plan.matrix(KINDS, job.moments)
    packed = plan.pack(random.Random(seed), cells, job, size)
    blows = [(r, b) for r in packed for b in r.blows if not b.helper]

    assert sorted((b.kind, b.moment.value) for _, b in blows) == sorted((c.kind, c.moment.value) for c in cells)
    assert [r.number for r in packed] == list(range(1, len(packed) + 1))
    for round_, blow in blows:
        fault = faults.parse_fault(blow.spec)
        tiers = FAULTS[blow.kind].tiers
        assert round_.tier in tiers or not set(tiers) & set(job.tiers)
        phases = {Moment.STARTUP: Phase.STARTUP, Moment.SAVE: Phase.SAVE, Moment.RESTORE: Phase.RESTORE}
        if blow.kind != "kill-flush":
            assert fault.phase == phases.get(blow.moment)
        assert fault.standby == (blow.moment is Moment.STANDBY)
        if blow.moment is Moment.EARLY and job.every > 1:
            assert fault.step is not None and 0 < fault.step < job.every
        assert FAULTS[blow.kind].same_bits == round_.same_bits


@given(seeds, jobs, sizes)
def test_damage_is_read(seed: int, job: Job, size: int) -> None:
    """A checkpoint that is damaged while the run trains is the newest one, and a failure comes before the next."""
    job = Job(job.steps, job.nproc, 20, job.moments)
    cells = [Cell(kind, Moment.STEP) for kind in DAMAGE]
    for round_ in plan.pack(random.Random(seed), cells, job, size):
        steps = [(b.kind, faults.parse_fault(b.spec).step or 0) for b in round_.blows]
        for kind, step in steps:
            if kind in DAMAGE:
                assert step % 20 == 1
                assert any(step < other < step + 19 for k, other in steps if FAULTS[k].carries)


@pytest.mark.parametrize("wanted", [["hang"], ["torn"], ["kill-flush"]])
def test_moments_that_a_script_lacks_are_left_out(wanted: list[str]) -> None:
    """A fault that cannot strike at any of the job's moments is not dealt."""
    job = Job(400, 2, 20, moments=(Moment.SAVE,))

    struck = {b.moment for r in rounds(3, wanted, job, 3, 6) for b in r.blows if not b.helper}

    assert struck == (set() if wanted == ["hang"] else {Moment.SAVE})
