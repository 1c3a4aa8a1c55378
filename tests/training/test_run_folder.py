"""The folder of a run: whose it is, its lock, logs and checkpoints."""

import resource

from minippo.training.run_folder import Log
from test_run import lines


def test_lines_wait_until_there_is_room(tmp_path, capsys):
    """Lines of 12 bytes where files may have 30: two fit, the third is taken back whole and comes when there is room."""
    log = Log(tmp_path / "log", 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30, hard))                          # Python ignores SIGXFSZ: write fails
        for step in (1, 2, 3):
            log.write([{"step": step}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "log").read_bytes() == b'{"step": 1}\n{"step": 2}\n' and log.sync() == 24
    log.write([{"step": 4, "x": float("nan")}])
    assert lines(tmp_path / "log") == [{"step": 1}, {"step": 2}, {"step": 3}, {"step": 4, "x": None}]
    log.file.close()
