"""The order of work, and that no job is lost on the way."""

from __future__ import annotations

import os
import threading

import pytest

from florence_daemon.errors import QueueFull, Stopping
from florence_daemon.queue import Image, Job, JobQueue, Kind


def job(kind: Kind, name: str = "x") -> Job:
    image = None if kind is Kind.HTTP else Image(name, (), None)
    return Job(kind, name, (), image)


def claimed(queue: JobQueue) -> list[str]:
    names = []
    while (taken := queue.claim(0)) is not None:
        names.append(str(taken.picture))
    return names


def test_what_waits_of_a_folder_inside_another_stays_when_that_ones_is_taken_back() -> None:
    queue = JobQueue(10)
    inner, below = os.path.join("p", "in"), os.path.join("p", "sub")
    for directory, root in (("p", "p"), (inner, inner), (below, "p")):
        path = os.path.join(directory, "a.jpg")
        queue.put(Job(Kind.FOLDER, path, (), Image(path, (), None, root=root)))
    queue.withdraw_folder("p", below)
    assert not queue.holds(os.path.join(below, "a.jpg"))
    queue.withdraw_folder("p", "p")
    assert claimed(queue) == [os.path.join(inner, "a.jpg")]


def test_people_go_first_then_folders_then_backfill_each_in_order() -> None:
    queue = JobQueue(10)
    for kind, name in [
        (Kind.BACKFILL, "b1"),
        (Kind.FOLDER, "f1"),
        (Kind.HTTP, "h1"),
        (Kind.FOLDER, "f2"),
        (Kind.HTTP, "h2"),
    ]:
        queue.put(job(kind, name))
    assert claimed(queue) == ["h1", "h2", "f1", "f2", "b1"]


def test_worker_of_one_class_leaves_the_others() -> None:
    queue = JobQueue(10)
    queue.put(job(Kind.FOLDER, "f1"))
    assert queue.claim(0, [Kind.HTTP]) is None
    assert queue.counts()["folder"] == 1


def test_people_and_others_have_as_many_places_each() -> None:
    queue = JobQueue(10)
    for kind in (Kind.HTTP, Kind.FOLDER, Kind.BACKFILL) * 2:
        queue.put(job(kind, kind.name))
    taken = [queue.claim(0, at_most=lambda: 2) for _ in range(5)]
    assert [each and each.picture for each in taken] == ["HTTP", "HTTP", "FOLDER", "FOLDER", None]
    assert taken[3] is not None
    queue.finish(taken[3])
    following = queue.claim(0, at_most=lambda: 2)
    assert following is not None
    assert following.picture == "BACKFILL"


def test_waiting_worker_gets_a_job_when_a_place_comes_free() -> None:
    queue = JobQueue(10)
    jobs = [job(Kind.FOLDER, "a"), job(Kind.FOLDER, "b")]
    for each in jobs:
        queue.put(each)
    assert queue.claim(0, at_most=lambda: 1) is jobs[0]
    taken: list[Job | None] = []
    thread = threading.Thread(target=lambda: taken.append(queue.claim(60, at_most=lambda: 1)))
    thread.start()
    queue.finish(jobs[0])
    thread.join(60)
    assert taken == [jobs[1]]


def test_waiting_worker_gets_a_job_as_it_comes() -> None:
    queue = JobQueue(10)
    taken: list[Job | None] = []
    thread = threading.Thread(target=lambda: taken.append(queue.claim(60)))
    thread.start()
    put = job(Kind.FOLDER)
    queue.put(put)
    thread.join(60)
    assert taken == [put]


def test_requests_are_bounded_and_folders_are_not() -> None:
    queue = JobQueue(2)
    queue.put(job(Kind.HTTP))
    queue.put(job(Kind.HTTP))
    with pytest.raises(QueueFull, match="2 requests are waiting already"):
        queue.put(job(Kind.HTTP))
    for number in range(10):
        queue.put(job(Kind.FOLDER, str(number)))


def test_running_requests_count_until_they_are_finished() -> None:
    queue = JobQueue(1)
    queue.put(job(Kind.HTTP))
    running = queue.claim(0)
    assert running is not None
    with pytest.raises(QueueFull):
        queue.put(job(Kind.HTTP))
    queue.finish(running)
    queue.put(job(Kind.HTTP))


def test_backfill_over_the_network_leaves_places_for_people() -> None:
    queue = JobQueue(4)
    for _ in range(2):
        queue.put(Job(Kind.BACKFILL, b"x", ()))
    with pytest.raises(QueueFull):
        queue.put(Job(Kind.BACKFILL, b"x", ()))
    queue.put(job(Kind.HTTP))


def test_withdrawn_job_is_never_claimed_and_frees_its_place() -> None:
    queue = JobQueue(1)
    first = job(Kind.HTTP, "first")
    queue.put(first)
    first.future.cancel()
    queue.put(job(Kind.HTTP, "second"))
    assert claimed(queue) == ["second"]


def test_image_is_held_until_its_job_ends() -> None:
    queue = JobQueue(1)
    queue.put(job(Kind.FOLDER, "a.jpg"))
    assert queue.holds("a.jpg")
    running = queue.claim(0)
    assert running is not None
    assert queue.holds("a.jpg")
    queue.finish(running)
    assert not queue.holds("a.jpg")
    assert queue.is_idle()


def test_jobs_put_back_keep_their_places() -> None:
    queue = JobQueue(1)
    for name in "abcd":
        queue.put(job(Kind.FOLDER, name))
    taken = [queue.claim(0) for _ in range(3)]
    for each in (taken[1], taken[0], taken[2]):
        assert each is not None
        queue.put_back(each)
    assert claimed(queue) == ["a", "b", "c", "d"]


def test_closed_queue_gives_what_waited_back_and_takes_nothing() -> None:
    queue = JobQueue(5)
    waiting = [job(Kind.FOLDER, "a"), job(Kind.HTTP, "h")]
    for each in waiting:
        queue.put(each)
    assert queue.close() == [waiting[1], waiting[0]]
    assert queue.claim(None) is None
    with pytest.raises(Stopping):
        queue.put(job(Kind.HTTP))


def test_waiting_until_done_ends_with_the_last_running_job() -> None:
    queue = JobQueue(5)
    queue.put(job(Kind.FOLDER))
    running = queue.claim(0)
    assert running is not None
    assert not queue.wait_until_done(0)
    queue.finish(running)
    assert queue.wait_until_done(0)


def test_withdrawn_job_leaves_the_queue_with_all_it_holds_unless_it_runs() -> None:
    queue = JobQueue(2)
    running, waiting = job(Kind.HTTP, "running"), job(Kind.HTTP, "waiting")
    queue.put(running)
    assert queue.claim(0) is running
    queue.put(waiting)
    queue.withdraw(waiting)
    queue.withdraw(running)
    assert queue.counts() == {"http": 0, "folder": 0, "backfill": 0, "running": 1}
    assert waiting.future.cancelled()
    assert not running.future.cancelled()
    queue.put(job(Kind.HTTP, "another"))
    queue.withdraw(waiting)
    assert claimed(queue) == ["another"]
