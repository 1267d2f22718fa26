"""How many decoders of a process work at a moment."""

import pytest

from stream.decode.slots import share_processors, slot
from stream.processors import processors


@pytest.fixture
def _all_processors():
    yield
    share_processors(processors())


@pytest.mark.usefixtures("_all_processors")
def test_so_many_decoders_work_at_a_moment_as_the_process_has_processors():
    share_processors(2)
    assert [slot().acquire(blocking=False) for _ in range(3)] == [True, True, False]
    slot().release()
    assert slot().acquire(blocking=False)
