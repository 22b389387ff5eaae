"""A key file: rotation, removal, and the reload by a running service."""

import asyncio
import errno
import fcntl
import json
import os
import re
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from authsvc import watched_file
from authsvc.errors import KeyFileError
from authsvc.tokens import key_file, key_store
from authsvc.tokens.key_file import KeyFile, generate_key_file, read_key_ring, read_keys, watch_key_file
from authsvc.tokens.key_store import was_just_published
from authsvc.tokens.keys import Key, KeyStatus
from tests.support import WITNESS, FakeClock, Rotation, rotate
from tests.unreadable_files import UNREADABLE

TTL = timedelta(minutes=15)


def rotate_keys(path: Path, ttl: timedelta, now: datetime) -> Rotation:
    return asyncio.run(rotate(path, ttl, now))


def remove_key(path: Path, kid: str, now: datetime) -> Sequence[Key]:
    return asyncio.run(key_store.remove_key(KeyFile(path), kid, now)).after


STATUSES = [KeyStatus.RETIRED, KeyStatus.SIGNING, KeyStatus.NEXT]


@pytest.fixture
def path(tmp_path: Path, clock: FakeClock) -> Path:
    path = tmp_path / "keys.json"
    generate_key_file(path, "ES256", clock())
    return path


def kids(path: Path, status: KeyStatus) -> list[str]:
    return [key.kid for key in read_keys(path) if key.status is status]


def change(path: Path, edit: Callable[[list[dict[str, Any]]], object]) -> None:
    jwks = json.loads(path.read_text())
    edit(jwks["keys"])
    path.write_text(json.dumps(jwks))


# Rotation


@pytest.mark.parametrize("alg", ["ES256", "RS256"])
def test_a_rotation_lets_the_next_key_sign_and_keeps_the_old_one(tmp_path: Path, clock: FakeClock, alg: str) -> None:
    """ASVS-11.1.1."""
    path = tmp_path / "keys.json"
    old, following = generate_key_file(path, alg, clock())
    clock.advance(days=1)
    rotation = rotate_keys(path, TTL, clock())
    keys = read_keys(path)
    assert keys == [rotation.retired, rotation.signing, rotation.following]
    assert [key.status for key in keys] == STATUSES
    assert [key.kid for key in keys[:2]] == [old.kid, following.kid]
    assert {key.alg for key in keys} == {alg}
    assert keys[0].retire_time == int((clock() + TTL + timedelta(seconds=30 + 60)).timestamp())
    assert [key.create_time for key in keys[1:]] == [following.create_time, int(clock().timestamp())]


def test_of_rotations_at_once_none_drops_a_key_of_another(path: Path, clock: FakeClock) -> None:
    def rotate_once(_: int) -> set[str]:
        change = asyncio.run(key_store.rotate_keys(KeyFile(path), TTL, clock()))
        return {key.kid for key in change.after}

    with ThreadPoolExecutor(4) as pool:
        printed = list(pool.map(rotate_once, range(20)))
    kept = {key.kid for key in read_keys(path)}
    assert len(kept) >= 3
    assert set().union(*printed) == kept
    assert len(kids(path, KeyStatus.SIGNING)) == 1
    assert kids(path, KeyStatus.NEXT)


def test_a_folder_that_cannot_be_read_is_said(path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "open", only_files(os.open))
    for change_keys in CHANGES.values():
        with pytest.raises(KeyFileError, match=r"keys\.json: its folder cannot be read: Permission denied$"):
            change_keys(path, clock)


def test_retired_keys_are_kept_until_they_are_over(path: Path, clock: FakeClock) -> None:
    first = rotate_keys(path, TTL, clock()).retired
    second = rotate_keys(path, TTL, clock()).retired
    assert first is not None
    assert second is not None
    assert kids(path, KeyStatus.RETIRED) == [first.kid, second.kid]
    clock.advance(minutes=16.5)
    third = rotate_keys(path, TTL, clock()).retired
    assert third is not None
    assert kids(path, KeyStatus.RETIRED) == [third.kid]


def test_a_file_without_a_next_key_gets_one_and_goes_on_signing_as_before(path: Path, clock: FakeClock) -> None:
    (old,) = kids(path, KeyStatus.SIGNING)
    change(path, list.pop)
    rotation = rotate_keys(path, TTL, clock())
    assert rotation.retired is None
    assert kids(path, KeyStatus.SIGNING) == [rotation.signing.kid] == [old]
    assert kids(path, KeyStatus.NEXT) == [rotation.following.kid]
    assert len(read_keys(path)) == 2


def test_gateways_may_not_know_a_key_of_the_last_two_hours(path: Path, clock: FakeClock) -> None:
    _, following = read_keys(path)
    clock.advance(hours=2, seconds=-1)
    assert was_just_published(following, clock())
    clock.advance(seconds=1)
    assert not was_just_published(following, clock())


# Removal


@pytest.mark.parametrize("status", STATUSES)
def test_a_removed_key_is_gone_and_one_signs_and_one_is_next(path: Path, clock: FakeClock, status: KeyStatus) -> None:
    rotate_keys(path, TTL, clock())
    (removed,) = kids(path, status)
    others = [key.kid for key in read_keys(path) if key.kid != removed]
    keys = remove_key(path, removed, clock())
    assert keys == read_keys(path)
    assert removed not in [key.kid for key in keys]
    assert [key.kid for key in keys if key.kid in others] == others
    assert len(kids(path, KeyStatus.SIGNING)) == len(kids(path, KeyStatus.NEXT)) == 1
    assert len(keys) == (2 if status is KeyStatus.RETIRED else 3)


def test_in_place_of_a_removed_key_the_published_one_signs(path: Path, clock: FakeClock) -> None:
    signing, following = read_keys(path)
    remove_key(path, signing.kid, clock())
    assert kids(path, KeyStatus.SIGNING) == [following.kid]


def test_an_unknown_key_is_reported(path: Path, clock: FakeClock) -> None:
    before = path.read_bytes()
    with pytest.raises(KeyFileError, match=r"keys\.json: has no key unknown$"):
        remove_key(path, "unknown", clock())
    assert path.read_bytes() == before


def test_the_only_key_is_not_removed(path: Path, clock: FakeClock) -> None:
    change(path, list.pop)
    (signing,) = kids(path, KeyStatus.SIGNING)
    expected = f"{path}: has no next key to sign instead of {signing}; add one: authsvc keys rotate {path}"
    with pytest.raises(KeyFileError, match=f"^{re.escape(expected)}$"):
        remove_key(path, signing, clock())
    rotate_keys(path, TTL, clock())
    assert signing not in [key.kid for key in remove_key(path, signing, clock())]


# Writing


def test_a_change_is_written_whole_or_not_at_all(path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    for work in (lambda: rotate_keys(path, TTL, clock()), lambda: remove_key(path, read_keys(path)[0].kid, clock())):
        with pytest.raises(KeyFileError, match=r"keys\.json: cannot be written: No space left on device$"):
            work()
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_changed_file_is_its_owners_alone(path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where root rotates the keys of a service that runs as another user."""
    owners: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "chown", lambda _, user, group: owners.append((user, group)))
    path.chmod(0o644)
    rotate_keys(path, TTL, clock())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert owners == [(path.stat().st_uid, path.stat().st_gid)]


def test_a_symlink_stays_one(path: Path, clock: FakeClock) -> None:
    link = path.with_name("link.json")
    link.symlink_to(path)
    rotation = rotate_keys(link, TTL, clock())
    assert link.is_symlink()
    assert kids(path, KeyStatus.SIGNING) == [rotation.signing.kid]
    assert sorted(path.parent.iterdir()) == [path, link]


# File systems and owners


def refuse(number: int) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


CHANGES: dict[str, Callable[[Path, FakeClock], object]] = {
    "rotate": lambda path, clock: rotate_keys(path, TTL, clock()),
    "remove": lambda path, clock: remove_key(path, read_keys(path)[0].kid, clock()),
}
CHANGED = pytest.mark.parametrize("change_keys", CHANGES.values(), ids=CHANGES)


def test_a_loop_of_symbolic_links_is_not_overwritten(tmp_path: Path, clock: FakeClock) -> None:
    path, other = tmp_path / "keys.json", tmp_path / "other.json"
    path.symlink_to(other)
    other.symlink_to(path)
    with pytest.raises(KeyFileError, match=r"keys\.json: exists; keys are never overwritten$"):
        generate_key_file(path, "ES256", clock())
    assert sorted(tmp_path.iterdir()) == [path, other]


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_no_hard_links_are_needed(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """SMB and exFAT have none."""
    monkeypatch.setattr(os, "link", refuse(number))
    path = tmp_path / "keys.json"
    assert generate_key_file(path, "ES256", clock()) == read_keys(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_bytes()
    with pytest.raises(KeyFileError, match="exists; keys are never overwritten"):
        generate_key_file(path, "ES256", clock())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_of_files_created_at_once_one_stays(tmp_path: Path, clock: FakeClock) -> None:
    path = tmp_path / "keys.json"

    def generate(_: int) -> Sequence[Key]:
        try:
            return generate_key_file(path, "ES256", clock())
        except KeyFileError:
            return []

    with ThreadPoolExecutor(8) as pool:
        generated = [keys for keys in pool.map(generate, range(16)) if keys]
    assert generated == [read_keys(path)]
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_created_leaves_nothing(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "replace", refuse(errno.EIO))
    with pytest.raises(KeyFileError, match=r"keys\.json: cannot be written: Input/output error$"):
        generate_key_file(tmp_path / "keys.json", "ES256", clock())
    assert list(tmp_path.iterdir()) == []


@CHANGED
@pytest.mark.parametrize("number", [errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_no_folder_can_be_locked_a_file_is_the_lock(
    path: Path,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    change_keys: Callable[[Path, FakeClock], object],
    number: int,
) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse(number))
    before = path.read_bytes()
    lock = path.with_name(".keys.json.lock")
    lock.touch()
    reported = f"{path}: another command changes it; if none is running, remove {lock}"
    with pytest.raises(KeyFileError, match=f"^{re.escape(reported)}$"):
        change_keys(path, clock)
    assert path.read_bytes() == before
    lock.unlink()
    change_keys(path, clock)
    assert path.read_bytes() != before
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_takes_no_lock_file_is_reported(
    path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOLCK))
    monkeypatch.setattr(os, "open", only_folders(os.open))
    with pytest.raises(KeyFileError, match=r"keys\.json: cannot be locked: Read-only file system$"):
        rotate_keys(path, TTL, clock())


def only_files(real: Callable[..., int]) -> Callable[..., int]:
    def opened(path: Any, flags: int, *more: Any, **options: Any) -> int:
        if Path(path).is_dir():
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, flags, *more, **options)

    return opened


def only_folders(real: Callable[..., int]) -> Callable[..., int]:
    def opened(path: Any, flags: int, *more: Any, **options: Any) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, flags, *more, **options)

    return opened


def belongs_to(monkeypatch: pytest.MonkeyPatch, path: Path, user: int, group: int, mode: int) -> None:
    """Let a file seem to belong to another user, to whom this one can give nothing."""
    real = Path.stat

    def stat_of(each: Path, **options: bool) -> os.stat_result:
        values = list(real(each, **options))
        return os.stat_result([0o100000 | mode, *values[1:4], user, group, *values[6:]] if each == path else values)

    monkeypatch.setattr(Path, "stat", stat_of)
    monkeypatch.setattr(os, "chown", refuse(errno.EPERM))


@CHANGED
@pytest.mark.parametrize(("user", "group", "mode"), [(4711, 0, 0o600), (0, 4711, 0o640)])
def test_keys_of_another_user_are_not_taken_away_from_it(
    path: Path,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    change_keys: Callable[[Path, FakeClock], object],
    user: int,
    group: int,
    mode: int,
) -> None:
    """The new file would be this user's alone, and the service would not start again."""
    before = path.read_bytes()
    user, group = user or os.geteuid(), group or os.getegid()
    belongs_to(monkeypatch, path, user, group, mode)
    reported = f"belongs to user {user}, group {group}, who could not read the new file; run this command as that user"
    with pytest.raises(KeyFileError, match=reported):
        change_keys(path, clock)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@CHANGED
@pytest.mark.parametrize(("group", "mode"), [(0, 0o755), (4711, 0o600)], ids=["no owners, as on exFAT", "group"])
def test_a_change_of_owner_that_is_refused_and_not_needed(
    path: Path,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    change_keys: Callable[[Path, FakeClock], object],
    group: int,
    mode: int,
) -> None:
    before = path.read_bytes()
    belongs_to(monkeypatch, path, os.geteuid(), group or os.getegid(), mode)
    change_keys(path, clock)
    assert path.read_bytes() != before


@CHANGED
def test_a_group_that_may_read_the_keys_still_may(
    path: Path, clock: FakeClock, change_keys: Callable[[Path, FakeClock], object]
) -> None:
    """Root owns them, and the service reads them as a member of the group."""
    for mode, kept in ((0o640, 0o640), (0o644, 0o600), (0o600, 0o600), (0o660, 0o640)):
        path.chmod(mode)
        change_keys(path, clock)
        assert stat.S_IMODE(path.stat().st_mode) == kept


def test_a_byte_order_mark_is_no_part_of_the_file(path: Path, clock: FakeClock) -> None:
    keys = read_keys(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_keys(path) == keys
    assert rotate_keys(path, TTL, clock()).signing.kid == keys[1].kid


def test_a_file_that_this_user_may_not_read_is_reported_with_a_remedy(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read every file, so the test fakes the refusal."""
    monkeypatch.setattr(key_file, "read_file", refuse(errno.EACCES))
    with pytest.raises(KeyFileError, match=r"cannot be read: Permission denied; run this as the file's owner$"):
        read_keys(path)


# Reload


class WatchedKeys:
    """A watched key file, and the events that it logs."""

    def __init__(self, path: Path, clock: FakeClock) -> None:
        self.path = path
        self.file = watch_key_file(path, clock)
        self._position = len(WITNESS.lines.getvalue())

    def reload(self) -> str:
        """Return the id of the signing key, after a reload where the file has changed."""
        return self.file.reload_if_changed().signing_key.kid

    @property
    def events(self) -> list[str]:
        """The events that were logged since this was last read."""
        text = WITNESS.lines.getvalue()[self._position :]
        self._position += len(text)
        return [json.loads(line)["event"] for line in text.splitlines()]


@pytest.fixture
def watched(path: Path, clock: FakeClock) -> WatchedKeys:
    return WatchedKeys(path, clock)


def replace(path: Path, text: str) -> None:
    """Replace the file atomically."""
    other = path.with_name("other")
    other.write_text(text)
    other.replace(path)


def test_a_file_that_does_not_change_is_not_read_again(watched: WatchedKeys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(key_file, "read_key_ring")
    ring = watched.file.content
    assert watched.file.reload_if_changed() is ring
    assert watched.events == []


def test_a_rotation_is_seen(watched: WatchedKeys, clock: FakeClock) -> None:
    rotation = rotate_keys(watched.path, TTL, clock())
    assert watched.reload() == rotation.signing.kid
    assert watched.events == ["keys_reloaded"]
    assert watched.reload() == rotation.signing.kid
    assert watched.events == []


def test_a_secret_that_is_swapped_by_a_symlink_is_seen(path: Path, clock: FakeClock) -> None:
    """Kubernetes mounts a file as a link through a link to a folder, and replaces the folder's link."""
    volume = path.parent / "volume"
    for name in ("1", "2"):
        (volume / name).mkdir(parents=True)
        generate_key_file(volume / name / "keys.json", "ES256", clock())
    (volume / "data").symlink_to("1")
    mounted = volume / "keys.json"
    mounted.symlink_to("data/keys.json")
    watched = WatchedKeys(mounted, clock)
    (volume / "new").symlink_to("2")
    (volume / "new").replace(volume / "data")
    assert watched.reload() == kids(volume / "2" / "keys.json", KeyStatus.SIGNING)[0]


def as_bytes(edit: Callable[[str], str]) -> Callable[[Path], object]:
    return lambda path: replace(path, edit(path.read_text()))


BROKEN: dict[str, Callable[[Path], object]] = {
    **UNREADABLE,
    "half-written": as_bytes(lambda text: text[: len(text) // 2]),
    "symmetric": as_bytes(lambda text: text.replace('"EC"', '"oct"')),
    "no key signs": as_bytes(lambda text: text.replace('"signing"', '"next"')),
    "half a key": as_bytes(lambda text: re.sub(r'"d": "[^"]*"', '"d": "AA"', text, count=1)),
}


@pytest.mark.parametrize("damage", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_keeps_the_last_good_keys(
    watched: WatchedKeys, clock: FakeClock, damage: Callable[[Path], object]
) -> None:
    """F16: each change logs one error, and a restored file is loaded."""
    good = watched.path.read_text()
    ring = watched.file.content
    damage(watched.path)
    for _ in range(3):
        assert watched.file.reload_if_changed() is ring
    assert watched.events == ["keys_not_reloaded"]
    if watched.path.is_dir():
        watched.path.rmdir()
    watched.path.unlink(missing_ok=True)
    watched.reload()
    assert set(watched.events) <= {"keys_not_reloaded"}
    watched.path.write_text(good)
    rotation = rotate_keys(watched.path, TTL, clock())
    assert watched.reload() == rotation.signing.kid
    assert watched.events == ["keys_reloaded"]


def test_each_change_of_a_broken_file_is_reported_once(watched: WatchedKeys) -> None:
    for text in ("{", "{}", "["):
        replace(watched.path, text)
        for _ in range(3):
            watched.reload()
    assert watched.events == ["keys_not_reloaded"] * 3


def test_a_file_that_cannot_be_read_for_a_moment_is_taken_afterwards(
    watched: WatchedKeys, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is moved away after its version was taken, and back after the failed read."""
    rotation = rotate_keys(watched.path, TTL, clock())
    away = watched.path.with_name("away")

    def read_meanwhile(path: Path, now: Any) -> Any:
        path.rename(away)
        try:
            return read_key_ring(path, now)
        finally:
            away.rename(path)

    with monkeypatch.context() as patch:
        patch.setattr(key_file, "read_key_ring", read_meanwhile)
        watched.reload()
    assert watched.reload() == rotation.signing.kid
    assert watched.events == ["keys_reloaded"], "the moment is no error"


def test_a_version_that_could_not_be_read_is_tried_again(
    watched: WatchedKeys, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For instance while the process had too many open files."""

    def refuse(path: Path, _: object) -> None:
        raise KeyFileError(f"{path}: cannot be read: Too many open files")

    rotation = rotate_keys(watched.path, TTL, clock())
    with monkeypatch.context() as patch:
        patch.setattr(key_file, "read_key_ring", refuse)
        for _ in range(3):
            watched.reload()
    assert watched.reload() == rotation.signing.kid
    assert watched.events == ["keys_not_reloaded", "keys_reloaded"]


def is_failing() -> float | None:
    return REGISTRY.get_sample_value("authsvc_reload_failing", {"file": "keys"})


def test_a_metric_shows_whether_the_newest_version_cannot_be_used(watched: WatchedKeys) -> None:
    good = watched.path.read_text()
    assert is_failing() == 0
    replace(watched.path, "{")
    watched.reload()
    assert is_failing() == 0, "it may be in the middle of a replacement"
    watched.reload()
    assert is_failing() == 1
    replace(watched.path, good)
    watched.reload()
    assert is_failing() == 0


def test_a_file_that_returns_as_it_was_is_no_longer_failing(
    watched: WatchedKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For instance on a file system that is mounted again."""
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(watched_file, "_version", lambda _: ())
            patch.setattr(key_file, "read_key_ring", lambda _, now: read_key_ring(Path("/nowhere/keys.json"), now))
            for _ in range(2):
                watched.file.reload_if_changed()
        assert is_failing() == 1
        watched.reload()
        assert is_failing() == 0
    assert watched.events == ["keys_not_reloaded"] * 2


def test_a_reload_on_demand_is_logged_whatever_its_outcome(watched: WatchedKeys) -> None:
    good = watched.path.read_text()
    watched.file.reload()
    assert watched.events == ["keys_reloaded"]
    replace(watched.path, "{")
    for _ in range(2):
        watched.file.reload()
    assert watched.events == ["keys_not_reloaded"] * 2
    for _ in range(3):
        watched.reload()
    assert watched.events == [], "it is logged already"
    replace(watched.path, good)
    watched.file.reload()
    assert watched.events == ["keys_reloaded"]


def test_rights_that_are_given_later_are_seen(
    watched: WatchedKeys, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read every file, so the test fakes the refusal."""

    def refuse(path: Path, _: object) -> None:
        raise KeyFileError(f"{path}: cannot be read: Permission denied")

    rotation = rotate_keys(watched.path, TTL, clock())
    watched.path.chmod(0o000)
    with monkeypatch.context() as patch:
        patch.setattr(key_file, "read_key_ring", refuse)
        watched.reload()
    watched.path.chmod(0o600)
    assert watched.reload() == rotation.signing.kid


def test_at_its_start_it_refuses_a_broken_file(path: Path, clock: FakeClock) -> None:
    path.write_text("{")
    with pytest.raises(KeyFileError, match="not a JWK Set"):
        watch_key_file(path, clock)
