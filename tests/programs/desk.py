"""Threads and processes that work for each other: queues, locks, semaphores, shared memory, pools,
timers. Each counts; the least of the counts goes to /srv/count, or what was wrong."""
import hashlib
import multiprocessing
import os
import queue
import signal
import threading
import time
from multiprocessing import shared_memory


def square(n):
    return n * n


def counter(memory, at, lock):
    while True:
        with lock:
            value = int.from_bytes(memory.buf[at:at + 8], "little") + 1
            memory.buf[at:at + 8] = value.to_bytes(8, "little")
        time.sleep(0.001)


def digester(requests, answers):
    while True:
        n = requests.get()
        answers.put((n, hashlib.sha256(str(n).encode()).hexdigest()))


def main():
    wrong = []
    counts = [0] * 6

    def guard(work):
        def run():
            try:
                work()
            except Exception as error:  # Whatever it is, it is told.
                wrong.append(f"{work.__name__}: {error!r}")
        threading.Thread(target=run, daemon=True).start()

    memory = shared_memory.SharedMemory(create=True, size=64)
    memory.buf[:64] = bytes(64)
    lock = multiprocessing.Lock()
    for _ in range(2):
        multiprocessing.Process(target=counter, args=(memory, 0, lock), daemon=True).start()
    requests, answers = multiprocessing.Queue(), multiprocessing.Queue()
    multiprocessing.Process(target=digester, args=(requests, answers), daemon=True).start()
    pool = multiprocessing.Pool(2)

    def shared():
        last = 0
        while True:
            value = int.from_bytes(memory.buf[:8], "little")
            if value < last:
                wrong.append(f"shared memory went from {last} to {value}")
            last = counts[0] = value
            time.sleep(0.002)

    def digests():
        while True:
            n = counts[1]
            requests.put(n)
            if answers.get() != (n, hashlib.sha256(str(n).encode()).hexdigest()):
                wrong.append(f"digest of {n}")
            counts[1] += 1

    def pooled():
        while True:
            n = counts[2]
            if pool.map(square, range(n, n + 10)) != [i * i for i in range(n, n + 10)]:
                wrong.append(f"squares from {n}")
            counts[2] += 1

    words = queue.Queue(maxsize=3)

    def producer():
        for n in range(1 << 60):
            words.put(n)

    def consumer():
        while True:
            n = counts[3]
            if words.get() != n:
                wrong.append(f"queue of threads: {n}")
            counts[3] += 1
            if n % 100 == 0:
                time.sleep(0.001)

    condition = threading.Condition()

    def waiter():
        with condition:
            while True:
                condition.wait(timeout=0.05)
                counts[4] += 1

    def tick(*_):
        counts[5] += 1

    signal.signal(signal.SIGALRM, tick)
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    for work in (shared, digests, pooled, producer, consumer, waiter):
        guard(work)
    print("ready", flush=True)
    while True:
        time.sleep(0.05)
        with open("/srv/count.new", "w") as file:
            file.write("\n".join(wrong) if wrong else str(min(counts)))
        os.rename("/srv/count.new", "/srv/count")


if __name__ == "__main__":
    main()
