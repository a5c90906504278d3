"""An asyncio server with threads and subprocesses that can tell whether all of them still live.

Protocol: one command a line, one JSON answer a line.
  status        counters of the loop, of each thread and of each subprocess
  put KEY TEXT  keep a text in memory
  get KEY       give it back
  slow SECONDS  answer after a sleep in the loop
"""

import asyncio
import hashlib
import json
import os
import queue
import subprocess
import sys
import threading
import time

store = {}
ticks = {"loop": 0, "errors": 0}
thread_ticks = [0] * 4
jobs = queue.Queue()
done = queue.Queue()

CHILD = """
import sys
count = 0
for line in sys.stdin:
    count += 1
    print(count, line.strip()[::-1], flush=True)
"""


def hashing(index):
    data = bytes([index]) * 4096
    want = hashlib.sha256(data).hexdigest()
    while True:
        if hashlib.sha256(data).hexdigest() != want:
            ticks["errors"] += 1
        thread_ticks[index] += 1
        time.sleep(0.01)


def worker():
    while True:
        number = jobs.get()
        done.put(number * 2)


class Child:
    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.count = 0
        self.lock = threading.Lock()

    def ask(self, word):
        with self.lock:
            self.count += 1
            self.process.stdin.write(word + "\n")
            self.process.stdin.flush()
            return self.process.stdout.readline().strip() == f"{self.count} {word[::-1]}"


children = [Child(), Child()]


async def tick():
    while True:
        before = time.monotonic()
        await asyncio.sleep(0.02)
        if time.monotonic() - before < 0.019:
            ticks["errors"] += 1
        ticks["loop"] += 1


async def status():
    loop = asyncio.get_running_loop()
    answers = await asyncio.gather(*(loop.run_in_executor(None, c.ask, "palindrome") for c in children))
    jobs.put(21)
    doubled = await loop.run_in_executor(None, done.get)
    if not all(answers) or doubled != 42:
        ticks["errors"] += 1
    return {
        **ticks,
        "threads": thread_ticks,
        "children": [c.count for c in children],
        "alive": [c.process.poll() is None for c in children],
        "keys": len(store),
        "pid": os.getpid(),
    }


async def serve(reader, writer):
    while line := await reader.readline():
        word, _, rest = line.decode().strip().partition(" ")
        if word == "status":
            answer = await status()
        elif word == "put":
            key, _, text = rest.partition(" ")
            store[key] = text
            answer = len(store)
        elif word == "get":
            answer = store.get(rest)
        elif word == "slow":
            await asyncio.sleep(float(rest))
            answer = "slept"
        else:
            answer = f"unknown command {word}"
        writer.write((json.dumps(answer) + "\n").encode())
        await writer.drain()
    writer.close()


async def main():
    for index in range(len(thread_ticks)):
        threading.Thread(target=hashing, args=(index,), daemon=True).start()
    threading.Thread(target=worker, daemon=True).start()
    server = await asyncio.start_server(serve, "0.0.0.0", 7000)
    ticker = asyncio.create_task(tick())
    print("serving", flush=True)
    async with server:
        await server.serve_forever()
    await ticker


asyncio.run(main())
