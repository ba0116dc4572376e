"""Which cache directories are used and how files are written; no test relies on permissions, because root has all."""

from __future__ import annotations

import errno
import os
import resource
import stat
import warnings
from pathlib import Path

import pytest
from forks import in_a_child

from fx_partition.hardware import cache_dir
from fx_partition.hardware import probe as probing
from fx_partition.hardware.bandwidth_sweep import save, saved
from fx_partition.hardware.cache_dir import (
    CacheDirectoryError,
    UntrustedCacheError,
    cache_directory,
    check_writable,
    put_whole,
)
from fx_partition.hardware.cpu_info import Cache, CpuFacts

FACTS = CpuFacts("A", (Cache(2, 2**20, 1, 1.0, True),), 4.0, 2e9, 2**34, "a test")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    name(tmp_path / "cache", monkeypatch)
    return tmp_path / "cache"


def name(path: Path | str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FX_PARTITION_CACHE_DIR", str(path))


def test_it_is_made_for_its_user_alone(folder: Path) -> None:
    before = os.umask(0)
    try:
        assert cache_directory() == folder
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert cache_directory() == folder
    check_writable(folder)
    assert not list(folder.iterdir())


def test_a_relative_name_holds_after_a_change_of_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name("cache", monkeypatch)
    assert cache_directory() == tmp_path / "cache"


def test_without_a_name_it_is_below_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name("", monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "fx_partition"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "fx_partition"


def a_file(path: Path) -> Path:
    path.write_text("")
    return path


def a_link_to_nothing(path: Path) -> Path:
    path.symlink_to(path.with_name("nothing"))
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (a_file, "not a directory"),
        (lambda path: a_file(path) / "below", "Not a directory"),
        (a_link_to_nothing, "not a directory"),
        (lambda path: Path("/proc/fx_partition"), "cannot be made"),
        (lambda path: path / ("x" * 300), "name too long"),
    ],
    ids=["a file", "below a file", "a link to nothing", "where nothing can be made", "a long name"],
)
def test_one_that_cannot_be_made_is_named(
    make: object, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path / "cache")  # type: ignore[operator]
    name(path, monkeypatch)
    with pytest.raises(CacheDirectoryError, match=words) as found:
        cache_directory()
    assert str(path) in str(found.value) and "$FX_PARTITION_CACHE_DIR" in str(found.value)
    assert saved(FACTS) == []


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o770, 0o1777, 0o702])
def test_one_that_others_may_write_to_is_refused(folder: Path, mode: int) -> None:
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(UntrustedCacheError, match=f"others may write.*{mode:o}.*chmod go-w.*CACHE_DIR"):
        cache_directory()
    folder.chmod(mode & ~0o022)
    assert cache_directory() == folder


def owned_by(user: int, folder: Path) -> os.stat_result:
    real = list(folder.stat())
    real[stat.ST_UID] = user
    return os.stat_result(real)


def test_one_that_is_another_user_s_is_refused_and_the_administrator_s_is_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.mkdir(mode=0o755)
    monkeypatch.setattr(cache_dir.os, "geteuid", lambda: 4242)
    for user in (4242, 0):
        cache_dir._refuse_others(folder, owned_by(user, folder))
    with pytest.raises(UntrustedCacheError, match=r"user 4243.*user 4242.*CACHE_DIR"):
        cache_dir._refuse_others(folder, owned_by(4243, folder))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_root_does_not_use_a_user_s(folder: Path) -> None:
    folder.mkdir()
    os.chown(folder, 4243, -1)
    with pytest.raises(UntrustedCacheError, match="user 4243"):
        cache_directory()


def test_what_was_measured_is_not_read_where_others_may_have_written_it(folder: Path) -> None:
    path = save(FACTS, [(1.0, 2.0)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert saved(FACTS) == [(1.0, 2.0)]
    path.parent.chmod(0o777)
    with pytest.warns(UserWarning, match="is not read: others may write"):
        assert saved(FACTS) == []


def test_a_probe_looks_for_a_place_before_it_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name(a_file(tmp_path / "cache"), monkeypatch)
    monkeypatch.setattr(probing, "sweep", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr(probing, "cpu_facts", lambda: FACTS)
    with pytest.raises(ValueError, match="CACHE_DIR"):
        probing.probe(seconds=0)


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_found_and_nothing_is_left_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache_directory()
    monkeypatch.setattr(cache_dir.os, "fsync", no_space)
    with pytest.raises(CacheDirectoryError, match=r"cannot be written to.*[Nn]o space.*CACHE_DIR"):
        check_writable(folder)
    with pytest.raises(OSError, match="space"):
        put_whole(folder / "file", b"contents")
    assert not list(folder.iterdir())


def test_a_disk_that_takes_names_and_no_bytes_is_found(folder: Path) -> None:
    cache_directory()

    def check() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        check_writable(folder)

    said = in_a_child(check)
    assert said.startswith("CacheDirectoryError: ") and str(folder) in said
    assert not list(folder.iterdir())


def test_a_directory_that_takes_no_names_is_found() -> None:
    with pytest.raises(CacheDirectoryError, match=r"/proc/self.*CACHE_DIR"):
        check_writable(Path("/proc/self"))


def test_a_file_is_on_the_disk_before_it_has_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache_directory()
    path = folder / "file"
    done = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        done.append(("fsync", os.fstat(descriptor).st_size, path.exists()))
        fsync(descriptor)

    def noted_replace(source: str, target: Path) -> None:
        done.append(("replace", os.stat(source).st_size, path.exists()))
        replace(source, target)

    monkeypatch.setattr(cache_dir.os, "fsync", noted_fsync)
    monkeypatch.setattr(cache_dir.os, "replace", noted_replace)
    put_whole(path, b"contents")
    assert done == [("fsync", 8, False), ("replace", 8, False)]
    assert path.read_bytes() == b"contents" and list(folder.iterdir()) == [path]
