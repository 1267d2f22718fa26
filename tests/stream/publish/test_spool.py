from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from stream.errors import ConfigError
from stream.publish.spool import Spool, SpoolFolder


def open_spool(folder, limit):
    return Spool(SpoolFolder(folder), "alerts.jsonl", limit)


def test_spool_hands_on_what_an_earlier_process_left_before_it_was_killed(tmp_path):
    script = (
        "import os, pathlib, signal, sys\n"
        "from stream.publish.spool import Spool, SpoolFolder\n"
        "folder = SpoolFolder(pathlib.Path(sys.argv[1]))\n"
        "Spool(folder, 'alerts.jsonl', 10).append(['{\"n\": 1}', '{\"n\": 2}'])\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False, cwd=root)
    spool = open_spool(tmp_path, 10)
    assert spool.append(['{"n": 3}']) == 1
    assert list(spool) == ['{"n": 1}', '{"n": 2}', '{"n": 3}']
    spool.close()


def test_spool_passes_over_what_could_not_be_written_in_full(tmp_path, caplog):
    (tmp_path / "alerts.jsonl").write_bytes(b'{"n": 1}\n\0\0\0\n{"n": 2}\n{"n": 3, "long": "er')
    spool = open_spool(tmp_path, 10)
    assert list(spool) == ['{"n": 1}', '{"n": 2}']
    assert "2 damaged lines" in caplog.text
    spool.append(['{"n": 4}'])
    spool.close()
    spool = open_spool(tmp_path, 10)
    assert list(spool) == ['{"n": 1}', '{"n": 2}', '{"n": 4}']
    assert "1 damaged lines" in caplog.text  # that in the midst; nothing is left of the other
    spool.close()


def test_spool_is_empty_on_disk_once_all_is_delivered(tmp_path):
    spool = open_spool(tmp_path, 10)
    spool.append(["{}", "{}", "{}"])
    spool.drop(2)
    assert len(spool) == 1
    spool.drop(1)
    assert spool.path.read_bytes() == b""
    spool.append(['{"n": 4}'])
    assert list(spool) == ['{"n": 4}']
    spool.close()


def test_spool_takes_no_more_than_its_limit(tmp_path):
    spool = open_spool(tmp_path, 2)
    assert spool.append(["{}", "{}", "{}"]) == 2
    assert spool.append(["{}"]) == 0
    spool.close()


def test_spool_left_by_a_run_with_a_higher_limit_is_kept_whole(tmp_path):
    (tmp_path / "alerts.jsonl").write_text("{}\n" * 5)
    spool = open_spool(tmp_path, 2)
    assert spool.append(["{}"]) == 0
    assert len(spool) == 5
    spool.close()


def test_spool_takes_all_or_nothing_when_the_disk_is_full(tmp_path, files_no_larger_than):
    spool = open_spool(tmp_path, 10)
    spool.append(['{"n": 1}'])
    with files_no_larger_than(20), pytest.raises(OSError, match="File too large"):
        spool.append(['{"n": 2}', '{"n": 3}'])
    assert spool.path.read_text() == '{"n": 1}\n'
    assert list(spool) == ['{"n": 1}']
    spool.close()


def test_spool_refuses_a_folder_that_another_sink_uses(tmp_path):
    spool = open_spool(tmp_path, 10)
    with pytest.raises(ConfigError, match="give each its own"):
        open_spool(tmp_path, 10)
    spool.close()
    open_spool(tmp_path, 10).close()


def test_spool_refuses_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="expected a folder"):
        open_spool(tmp_path / "file" / "spool", 10)


def test_spool_is_readable_by_its_user_alone(tmp_path):
    spool = open_spool(tmp_path / "new", 10)
    assert stat.S_IMODE(spool.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(spool.path.parent.stat().st_mode) == 0o700
    spool.close()


def test_private_spool_is_no_folder_before_something_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = SpoolFolder(None)
    spool = Spool(folder, "alerts.jsonl", 10)
    assert (len(spool), list(spool), list(tmp_path.iterdir())) == (0, [], [])
    spool.append(["{}"])
    (made,) = tmp_path.iterdir()
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    spool.close()
    folder.close()
    assert made.exists()  # something is left in it


def test_file_that_is_a_symbolic_link_is_refused_and_its_target_untouched(tmp_path):
    target = tmp_path / "diary"
    target.write_text("dear diary")
    spool = tmp_path / "spool"
    spool.mkdir()
    (spool / "alerts.jsonl").symlink_to(target)
    with pytest.raises(ConfigError, match=r"alerts\.jsonl: .*it is a symbolic link"):
        open_spool(spool, 10)
    assert target.read_text() == "dear diary"


def test_file_that_has_another_name_elsewhere_is_refused_and_untouched(tmp_path):
    target = tmp_path / "diary"
    target.write_text("dear diary")
    spool = tmp_path / "spool"
    spool.mkdir()
    os.link(target, spool / "alerts.jsonl")
    with pytest.raises(ConfigError, match="without a second name"):
        open_spool(spool, 10)
    assert target.read_text() == "dear diary"


def test_file_that_is_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "alerts.jsonl")
    with pytest.raises(ConfigError, match="expected a file of its own"):
        open_spool(tmp_path, 10)


@pytest.mark.parametrize("leads_to", ["there", "nowhere"])
def test_folder_that_is_a_symbolic_link_is_refused(tmp_path, leads_to):
    (tmp_path / "there").mkdir()
    (tmp_path / "spool").symlink_to(tmp_path / leads_to)
    with pytest.raises(ConfigError, match="it is a symbolic link"):
        open_spool(tmp_path / "spool", 10)
    assert not list((tmp_path / "there").iterdir())


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_folder_that_others_may_write_is_refused(tmp_path, mode):
    tmp_path.chmod(mode)
    with pytest.raises(ConfigError, match=f"others may write it .mode {mode:o}.*chmod go-w"):
        open_spool(tmp_path, 10)


def test_file_that_others_may_write_is_refused(tmp_path):
    (tmp_path / "alerts.jsonl").touch()
    (tmp_path / "alerts.jsonl").chmod(0o666)
    with pytest.raises(ConfigError, match=r"alerts\.jsonl: others may write it"):
        open_spool(tmp_path, 10)


def test_file_that_others_may_read_is_closed_to_them(tmp_path):
    (tmp_path / "alerts.jsonl").touch()
    (tmp_path / "alerts.jsonl").chmod(0o644)
    open_spool(tmp_path, 10).close()
    assert stat.S_IMODE((tmp_path / "alerts.jsonl").stat().st_mode) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: to give files away")
@pytest.mark.parametrize("name", ["", "alerts.jsonl"])
def test_folder_and_file_of_another_user_are_refused(tmp_path, name):
    (tmp_path / "alerts.jsonl").touch()
    os.chown(tmp_path / name, 1234, -1)
    with pytest.raises(ConfigError, match="belongs to user 1234"):
        open_spool(tmp_path, 10)


def test_folder_that_was_refused_can_be_used_once_it_is_mended(tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError):
        open_spool(tmp_path, 10)
    tmp_path.chmod(0o755)
    open_spool(tmp_path, 10).close()
