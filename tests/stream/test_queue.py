import threading

import pytest

from kstream.stream.queue import BoundedQueue


def blocked(queue: BoundedQueue[int], item: int, n_bytes: int) -> threading.Thread:
    thread = threading.Thread(target=queue.put, args=(item, n_bytes), daemon=True)
    thread.start()
    thread.join(0.05)
    return thread


def test_bytes_that_wait_are_bounded_and_order_is_kept() -> None:
    queue: BoundedQueue[int] = BoundedQueue(100, 10)
    queue.put(1, 4)
    queue.put(2, 6)
    thread = blocked(queue, 3, 1)
    assert thread.is_alive()
    assert (len(queue), queue.n_bytes) == (2, 10)
    assert queue.get() == 1
    thread.join(5)
    assert [queue.get(), queue.get()] == [2, 3]
    assert queue.n_bytes == 0


def test_items_that_wait_are_bounded() -> None:
    queue: BoundedQueue[int] = BoundedQueue(2, 1000)
    queue.put(1)
    queue.put(2)
    thread = blocked(queue, 3, 0)
    assert thread.is_alive()
    queue.get()
    thread.join(5)
    assert not thread.is_alive()


def test_an_item_larger_than_the_bound_still_passes_alone() -> None:
    queue: BoundedQueue[int] = BoundedQueue(5, 10)
    queue.put(7, 1000)
    assert queue.get() == 7


def test_who_empties_the_queue_may_put_without_waiting() -> None:
    queue: BoundedQueue[int] = BoundedQueue(1, 1)
    queue.put(1, 1)
    queue.put(2, 1, wait=False)
    assert len(queue) == 2


def test_a_broken_queue_wakes_everybody_and_gives_nothing_more() -> None:
    queue: BoundedQueue[int] = BoundedQueue(1, 10)
    queue.put(1, 10)
    raised: list[BaseException] = []

    def put() -> None:
        try:
            queue.put(2, 10)
        except OSError as error:
            raised.append(error)

    thread = threading.Thread(target=put)
    thread.start()
    thread.join(0.05)
    queue.break_off(OSError("gone"))
    queue.break_off(OSError("later"))
    thread.join(5)
    assert [str(error) for error in raised] == ["gone"]
    assert queue.get() is None
    with pytest.raises(OSError, match="gone"):
        queue.put(3)


def test_a_closed_queue_still_gives_what_waits() -> None:
    queue: BoundedQueue[int] = BoundedQueue(3, 10)
    queue.put(1)
    queue.close()
    assert [queue.get(), queue.get()] == [1, None]
