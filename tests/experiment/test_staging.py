from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nmt_ls.experiment.staging import LOCK, staging_directory, terminate_as_exit

# stages a.txt, says so, and waits to be told to go on
BUILDER = """
import sys
from pathlib import Path
from nmt_ls.experiment.staging import staging_directory
final = Path(sys.argv[1])
with staging_directory(final) as staging:
    (staging.path / "a.txt").write_text(sys.argv[2])
    print("building", flush=True)
    sys.stdin.readline()
    print("published" if staging.publish() else "too late", flush=True)
"""


def start(final: Path, content: str) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(final), content],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "building\n"
    return child


def test_a_directory_appears_whole(tmp_path: Path) -> None:
    final = tmp_path / "deep" / "final"
    with staging_directory(final) as staging:
        (staging.path / "part").mkdir()
        (staging.path / "part/a.txt").write_text("a")
        assert not final.exists()
        assert staging.publish()
    assert sorted(path.name for path in final.rglob("*")) == ["a.txt", "part"]
    assert [path.name for path in final.parent.iterdir()] == ["final"]


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with staging_directory(tmp_path / "final") as staging:
            (staging.path / "a.txt").write_text("a")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGHUP, 128 + signal.SIGHUP), (signal.SIGINT, -2)],
)
def test_a_signal_leaves_nothing(tmp_path: Path, number: signal.Signals, status: int) -> None:
    child = start(tmp_path / "final", "a")
    child.send_signal(number)
    child.communicate(timeout=20)
    assert child.returncode == status
    assert not list(tmp_path.iterdir())


def test_of_two_builders_the_first_to_finish_wins(tmp_path: Path) -> None:
    final = tmp_path / "final"
    one, two = start(final, "one"), start(final, "two")
    assert two.communicate("\n", timeout=20)[0] == "published\n"
    assert one.communicate("\n", timeout=20)[0] == "too late\n"
    assert (final / "a.txt").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_orphans_are_cleared_away_and_builders_at_work_are_not(tmp_path: Path) -> None:
    final = tmp_path / "final"
    working = start(final, "working")
    killed = start(final, "killed")
    killed.kill()
    killed.communicate(timeout=20)
    for path in tmp_path.iterdir():
        os.utime(path, (time.time() - 100, time.time() - 100))
    with staging_directory(final) as staging:
        left = {(path / "a.txt").read_text() for path in tmp_path.iterdir() if path != staging.path}
    assert left == {"working"}
    assert working.communicate("\n", timeout=20)[0] == "published\n"
    assert (final / "a.txt").read_text() == "working"


def test_what_is_left_without_a_lock_is_cleared_away_once_it_is_old(tmp_path: Path) -> None:
    old, young = (tmp_path / f".final.building-{name}" for name in ("old", "young"))
    for path in (old, young):
        (path / "part").mkdir(parents=True)
    os.utime(old, (time.time() - 100, time.time() - 100))
    with staging_directory(tmp_path / "final"):
        assert not old.exists()
        assert [path.name for path in young.iterdir()] == ["part"]  # no lock was made in passing


def test_the_lock_is_held_while_the_disk_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[bool] = []
    with staging_directory(tmp_path / "final") as staging:
        (staging.path / "a.txt").write_text("a")
        monkeypatch.setattr("nmt_ls.experiment.staging.fsync", lambda _: held.append((staging.path / LOCK).exists()))
        assert staging.publish()
    assert len(held) == 3
    assert all(held)
    assert [path.name for path in (tmp_path / "final").iterdir()] == ["a.txt"]


def test_a_builder_holds_its_lock(tmp_path: Path) -> None:
    with (
        staging_directory(tmp_path / "final") as staging,
        (staging.path / LOCK).open("a") as lock,
        pytest.raises(BlockingIOError),
    ):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_handlers_are_put_back_and_ignored_signals_stay_ignored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with terminate_as_exit():
            assert signal.getsignal(signal.SIGTERM) != before
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) == before
    finally:
        signal.signal(signal.SIGHUP, ignored)


class FinalisedUnderSignal:
    """The signal arrives while its finaliser runs, where an exception goes no further."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number

    def __del__(self) -> None:
        os.kill(os.getpid(), self.number)
        for _ in range(1000):
            pass


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_that_meets_a_finaliser_is_not_lost(number: signal.Signals, raised: type[BaseException]) -> None:
    def wait() -> None:
        with terminate_as_exit():
            victim = FinalisedUnderSignal(number)
            del victim
            time.sleep(10)

    begin = time.monotonic()
    with pytest.raises(raised):
        wait()
    assert time.monotonic() - begin < 9


def test_a_forked_worker_leaves_the_unwinding_to_its_parent(tmp_path: Path) -> None:
    unwound = tmp_path / "unwound"
    with terminate_as_exit():
        child = os.fork()
        if child == 0:
            try:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                unwound.touch()
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + signal.SIGTERM
    assert not unwound.exists()
