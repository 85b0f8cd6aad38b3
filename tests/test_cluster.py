"""Shards on real clusters of processes: the same bytes by any way, and every fault is survived and told."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cluster_work
import dask
import pandas as pd
import pytest
import torch
from conftest import ROOT
from distributed import Client, LocalCluster
from test_measuring import images, model

import vaerobust
from vaerobust.cluster.connecting import connected, engine_of
from vaerobust.cluster.engines import Call, Here, Pool, Work, compact
from vaerobust.cluster.running import HOPELESS, Tally, described, run
from vaerobust.cluster.shards import MANIFEST, Shard, Shards
from vaerobust.zoo.files import clean_temporaries, write_atomically

QUICK = {"samples": 100, "progress": False}
pytestmark = pytest.mark.filterwarnings("ignore")  # a cluster that ends warns of what it leaves


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as found:
        yield found


@pytest.fixture
def client(cluster):
    with Client(cluster) as found:
        found.wait_for_workers(2)
        yield found


def cut(shards: int, total: int = 24) -> list[Shard]:
    """Return the shards into which 24 images are cut."""
    size = total // shards
    return [Shard(f"{at:06d}", "w", "i", at, at + size, "s") for at in range(0, total, size)]


def compute(shards, store, engine, folder, faults=None, **options) -> Tally:
    """Compute the shards that are missing; ``faults`` maps a start to what happens there."""
    by_name = {shard.name: shard for shard in shards}
    faults = faults or {}
    calls = [
        Call(one.name, (one.start, one.stop, faults.get(one.start, ""))) for one in shards if store.load(one) is None
    ]
    tally = Tally(found=len(shards) - len(calls))
    try:
        return run(
            calls, Work(cluster_work.numbers, str(folder)), engine,
            lambda name, result: store.save(by_name[name], result.value),
            fail=lambda name, error: store.fail(by_name[name], described(error)),
            there=lambda name: store.load(by_name[name]) is not None, tally=tally, **options,
        )  # fmt: skip
    finally:
        store.write_manifest(shards)


def joined(shards, folder) -> bytes:
    """Return the bytes of all results, as they are read from disk."""
    store = Shards(folder)
    found = [store.load(shard) for shard in shards]
    assert None not in found
    return b"".join(one.tensors["values"].numpy().tobytes() for one in found)


def expected(shards, tmp_path) -> bytes:
    compute(shards, Shards(tmp_path / "expected"), Here(), tmp_path)
    return joined(shards, tmp_path / "expected")


# the same bytes


def test_a_measurement_on_a_cluster_has_the_bytes_of_one_in_this_process(client, tmp_path):
    """The files of the report too; then again, from the parts that one of them left."""
    here = vaerobust.measure(model(), images(), name="random", out=tmp_path / "here", **QUICK)
    there = vaerobust.measure(model(), images(), name="random", out=tmp_path / "there", client=client, **QUICK)
    pd.testing.assert_frame_equal(here.table, there.table, check_exact=True)
    assert here.to_json() == there.to_json()
    for name in ("delta", "reconstruction", "attacked_reconstruction"):
        assert here.pictures[name].tobytes() == there.pictures[name].tobytes()
    (tmp_path / "there/parts/000005.safetensors").unlink()
    assert (
        vaerobust.measure(model(), images(), name="random", out=tmp_path / "there", **QUICK).to_json() == here.to_json()
    )


def test_one_shard_or_many_on_any_engine_give_the_same_files(client, tmp_path):
    """In this process, in a pool and on two workers; results come in any order."""
    for count in (1, 3, 12):
        shards = cut(count)
        wanted = expected(shards, tmp_path / str(count))
        for name, engine in (("pool", Pool(2)), ("dask", engine_of(client))):
            if name == "pool" and count != 12:
                continue
            folder = tmp_path / str(count) / name
            tally = compute(shards, Shards(folder), engine, tmp_path)
            assert (tally.made, tally.found, tally.failed, tally.waiting) == (count, 0, {}, 0)
            assert joined(shards, folder) == wanted


# faults


def test_a_worker_that_is_killed_loses_nothing(client, tmp_path):
    shards = cut(6)
    tally = compute(shards, Shards(tmp_path / "out"), engine_of(client), tmp_path, {8: "kill"})
    assert (tally.made, tally.failed, tally.lost) == (6, {}, 1)
    assert "workers lost" in str(tally)
    assert joined(shards, tmp_path / "out") == expected(shards, tmp_path)


def test_a_shard_that_fails_stays_missing_until_it_is_tried_again(client, tmp_path):
    shards, store = cut(6), Shards(tmp_path / "out")
    tally = compute(shards, store, engine_of(client), tmp_path, {8: "raise"})
    assert (tally.made, list(tally.failed)) == (5, ["000008"])
    assert "missing: 000008: ZeroDivisionError: images 8 to 12" in str(tally)
    again = Shards(tmp_path / "out")
    assert again.load(shards[2]) is None
    assert again.failure(shards[2]) == "ZeroDivisionError: images 8 to 12"
    assert '"state": "failed"' in (tmp_path / "out" / MANIFEST).read_text()
    tally = compute(shards, again, engine_of(client), tmp_path)
    assert (tally.made, tally.found, tally.failed) == (1, 5, {})
    assert not list((tmp_path / "out").glob("*.failed.json"))
    assert joined(shards, tmp_path / "out") == expected(shards, tmp_path)


def test_a_worker_that_runs_out_of_memory_fails_its_shard_alone(tmp_path):
    shards = cut(3)
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0, "distributed.worker.memory.pause": False}),
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None, memory_limit="900MB"
        ) as small,
        Client(small) as client,
    ):
        tally = compute(shards, Shards(tmp_path / "out"), engine_of(client), tmp_path, {8: "memory"})
    assert (tally.made, list(tally.failed), tally.lost) == (2, ["000008"], 1)
    assert "out of memory" in tally.failed["000008"]


def free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def processes(*commands):
    """Start processes, give them, and end those that are left."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    started = [subprocess.Popen([sys.executable, "-m", *one], **quiet) for one in commands]
    try:
        yield started
    finally:
        for one in started:
            one.kill()
            one.wait()


def test_a_scheduler_that_is_killed_stops_the_run_and_the_next_one_goes_on(client, tmp_path):
    shards, address = cut(6), f"tcp://127.0.0.1:{free_port()}"
    scheduler = ["distributed.cli.dask_scheduler", "--host", address, "--no-dashboard"]
    worker = ["distributed.cli.dask_worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard"]
    with processes(scheduler, worker) as (killed, _), connected(None, address) as joins:
        store, begun = Shards(tmp_path / "out"), threading.Event()

        def kill() -> None:
            begun.wait()
            killed.send_signal(signal.SIGKILL)

        threading.Thread(target=kill, daemon=True).start()
        with (
            dask.config.set({"distributed.comm.timeouts.connect": "2s"}),
            pytest.raises(ConnectionError, match=r"the scheduler tcp://127.* is gone; .* run again"),
        ):
            compute(shards, store, engine_of(joins), tmp_path, {12: "slow"}, watch=lambda name: begun.set())
    left = Shards(tmp_path / "out")
    done = [shard for shard in shards if left.load(shard) is not None]
    assert 0 < len(done) < 6
    tally = compute(shards, left, engine_of(client), tmp_path)
    assert (tally.made, tally.found) == (6 - len(done), len(done))
    assert joined(shards, tmp_path / "out") == expected(shards, tmp_path)


def test_two_runs_at_once_in_one_folder_count_nothing_twice(cluster, tmp_path):
    shards, tallies = cut(12), []
    barrier = threading.Barrier(2)

    def compute_here() -> None:
        with Client(cluster) as own:
            barrier.wait()
            slow = dict.fromkeys(range(0, 24, 6), "slow")
            tallies.append(compute(shards, Shards(tmp_path / "out"), engine_of(own), tmp_path, slow))

    threads = [threading.Thread(target=compute_here) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [tally.made + tally.found for tally in tallies] == [12, 12]
    assert sum(tally.made for tally in tallies) == 12
    assert joined(shards, tmp_path / "out") == expected(shards, tmp_path)
    assert not list((tmp_path / "out").glob(".*"))


@contextlib.contextmanager
def largest_file(size: int):
    """Let this process write no file larger than this, as on a disk without room."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_ends_the_run_with_a_clear_error_and_nothing_half_written(tmp_path, monkeypatch):
    shards, store = cut(6), Shards(tmp_path / "out")
    for shard in shards[:2]:
        store.save(shard, cluster_work.numbers("", shard.start, shard.stop))
    with largest_file(100), pytest.raises(OSError, match=r"bytes could not be written; make room") as error:
        run(
            [Call(one.name, (one.start, one.stop)) for one in shards[2:]], Work(cluster_work.numbers, ""), Here(),
            lambda name, result: store.save(next(s for s in shards if s.name == name), result.value),
        )  # fmt: skip
    assert error.value.errno == errno.EFBIG
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["000000.safetensors", "000004.safetensors"]

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left on device: .* bytes could not be written"):
            vaerobust.measure(model(), images(1), out=tmp_path / "full", samples=20, progress=False)
    assert not [path for path in (tmp_path / "full").rglob("*") if path.is_file()]
    tally = compute(shards, Shards(tmp_path / "out"), Here(), tmp_path)
    assert (tally.found, tally.made) == (2, 4)


@pytest.mark.parametrize("where", ["header", "tensors", "record", "cut", "other"])
def test_a_damaged_shard_is_found_and_computed_anew(where, tmp_path):
    shards, store = cut(3), Shards(tmp_path / "out")
    compute(shards, store, Here(), tmp_path)
    wanted, path = joined(shards, tmp_path / "out"), tmp_path / "out/000008.safetensors"
    content = path.read_bytes()
    at = {"header": 3, "tensors": len(content) - 5, "record": content.index(b"record")}.get(where, 0)
    changed = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
    if where == "cut":
        changed = content[:-4]
    if where == "other":  # a shard of other images, under this name
        changed = (tmp_path / "out/000000.safetensors").read_bytes()
    path.write_bytes(changed)
    found = Shards(tmp_path / "out")
    tally = compute(shards, found, Here(), tmp_path)
    assert (tally.made, tally.found, found.damaged) == (1, 2, {"000008"})
    assert joined(shards, tmp_path / "out") == wanted


def test_every_byte_of_a_shard_is_checked(tmp_path):
    shard, store = cut(24)[0], Shards(tmp_path)
    store.save(shard, cluster_work.numbers("", shard.start, shard.stop))
    path = tmp_path / "000000.safetensors"
    content = path.read_bytes()
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert Shards(tmp_path).load(shard) is None, f"byte {at}"


def test_where_the_first_shards_all_fail_the_others_are_not_tried(tmp_path):
    shards = cut(12)
    tally = compute(shards, Shards(None), Here(), tmp_path, dict.fromkeys(range(24), "raise"))
    assert (len(tally.failed), tally.waiting) == (HOPELESS, 12 - HOPELESS)
    assert "not tried" in str(tally)


# a report with missing parts


def test_images_that_could_not_be_measured_are_nan_in_the_report_and_never_0(tmp_path, monkeypatch):
    from vaerobust.measuring import measure as room

    honest, broken = room.measured_part, [True]

    def fails(model, x, *rest):
        if broken[0] and len(x) == 5:
            raise MemoryError("too little of it")
        return honest(model, x, *rest)

    whole = vaerobust.measure(model(), images(), **QUICK)
    monkeypatch.setattr(room, "measured_part", fails)
    found = vaerobust.measure(model(), images(), out=tmp_path, **QUICK)
    for column in ("r", "certified", "attack", "theorem_1", "random_direction"):
        assert found.table[column][:5].isna().all()
        assert found.table[column][5:].tolist() == whole.table[column][5:].tolist()
        assert found.missing[column] == "the shard failed: MemoryError: too little of it (images 0 to 4)"
    assert "every part" in found.missing["curve"]
    assert found.save(tmp_path).exists()
    broken[0] = False
    kept = vaerobust.measure(model(), images(), out=tmp_path, **QUICK)
    assert "in an earlier run; not tried again" in kept.missing["attack"]
    assert vaerobust.measure(model(), images(), out=tmp_path, retry=True, **QUICK).to_json() == whole.to_json()


# files and processes


def test_what_a_killed_writer_left_is_removed_and_what_others_write_is_kept(tmp_path):
    code = "import os, signal, sys; from pathlib import Path; from vaerobust.zoo import files\n"
    code += "os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)\n"
    code += "files.write_atomically(Path(sys.argv[1]), b'content')"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.json")], cwd=ROOT, check=False)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".a.json.")
    mine = tmp_path / left.name.replace(left.name.split(".")[-3], str(os.getpid()))
    other = tmp_path / ".a.json.another-machine.1.abc.tmp"
    old = tmp_path / ".a.json.another-machine.2.abc.tmp"
    for path in (mine, other, old):
        path.write_bytes(b"")
    os.utime(old, (time.time() - 10**6,) * 2)
    assert sorted(clean_temporaries(tmp_path, "a.json.*")) == sorted([left, old])
    assert sorted(tmp_path.iterdir()) == sorted([mine, other])
    write_atomically(tmp_path / "b/c.json", b"content")
    assert clean_temporaries(tmp_path / "b") == clean_temporaries(tmp_path / "nowhere") == []


PARENT = """
import sys
from pathlib import Path
import cluster_work
from vaerobust.cluster.engines import Call, Pool, Work
if __name__ == "__main__":
    pool = Pool(1)
    pool.begin(Work(cluster_work.wait, sys.argv[1]))
    pool.submit(Call("one", ()))
    pool.next()
"""


def test_processes_of_a_pool_end_with_their_parent(tmp_path):
    script, note = tmp_path / "parent.py", tmp_path / "worker"
    script.write_text(PARENT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    parent = subprocess.Popen([sys.executable, str(script), str(note)], env=environment)
    patience = time.monotonic() + 60
    while not (note.exists() and note.read_text()):
        assert parent.poll() is None
        assert time.monotonic() < patience
        time.sleep(0.05)
    worker = int(note.read_text())
    parent.kill()
    parent.wait()
    while Path(f"/proc/{worker}").exists() if Path("/proc").exists() else runs(worker):
        assert time.monotonic() < patience
        time.sleep(0.05)


def runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


# arguments


def test_wrong_ways_to_ask_for_a_cluster_are_named(monkeypatch):
    with pytest.raises(ValueError, match="only one of --workers and --scheduler"), connected(2, "tcp://x:1"):
        pass
    with pytest.raises(TypeError, match=r"client must be a distributed\.Client, but is int"):
        vaerobust.measure(model(), images(1), client=3)
    monkeypatch.setattr("vaerobust.cluster.connecting.JOIN", 1)
    with pytest.raises(ConnectionError, match="no Dask scheduler answers at"), connected(None, "tcp://127.0.0.1:1"):
        pass
    with connected(None, None) as nothing:
        assert nothing is None


def test_without_dask_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)  # which makes the import fail
    for attempt in (lambda: connected(1, None).__enter__(), lambda: engine_of(object())):
        with pytest.raises(ValueError, match=r"pip install 'vaerobust\[cluster\]'"):
            attempt()


def test_a_shard_takes_its_own_images_along_and_no_others():
    images_of_one = compact((torch.zeros(10_000, 784)[:1], "text"))
    assert len(pickle.dumps(images_of_one)) < 2 * 784 * 4


def test_the_number_of_threads_is_restored_after_a_call():
    before = torch.get_num_threads()
    Work(cluster_work.numbers, "", threads=1).timed((0, 1))
    assert torch.get_num_threads() == before
