"""A program that forks while clients are in use: run by test_forks.

python -m tests.client.forker sync|async|threads ADDRESS TOKEN
"""

import asyncio
import os
import sys
import threading

from authsvc.client import AsyncClient, Client, forks

FORKS = 3


def use_sync(address: str, token: str) -> None:
    """Fork in the middle of other threads' calls, several times, and use the client in each child and grandchild."""
    client = Client(address)
    client.validate(token)
    stop = threading.Event()

    def keep_calling() -> None:
        while not stop.is_set():
            client.validate(token)

    threads = [threading.Thread(target=keep_calling) for _ in range(2)]
    for thread in threads:
        thread.start()
    children = []
    for _ in range(FORKS):
        pid = os.fork()
        if pid == 0:
            client.validate(token)
            grandchild = os.fork()
            client.validate(token)
            if grandchild == 0:
                os._exit(0)
            os._exit(os.waitpid(grandchild, 0)[1])
        children.append(pid)
        client.validate(token)
    stop.set()
    for thread in threads:
        thread.join()
    print([os.waitpid(pid, 0)[1] for pid in children])  # noqa: T201 - what the test reads


def use_async(address: str, token: str) -> None:
    """Fork with an open AsyncClient: the child gets an error and ends, by itself."""
    client = AsyncClient(address, max_staleness=60)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(client.validate(token))
    pid = os.fork()
    if pid:
        loop.run_until_complete(client.validate(token, max_staleness=0))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))  # noqa: T201 - what the test reads
        loop.run_until_complete(client.close())
        loop.close()
        return
    try:
        asyncio.run(child(client, token))
    except RuntimeError as error:
        print(error, flush=True)  # noqa: T201 - what the test reads
    asyncio.run(client.close())
    sys.exit(7)


async def child(client: AsyncClient, token: str) -> None:
    await client.validate(token)
    await client.close()


class Recorder:
    """Is called before and after each fork, as a Client is; while the first thread forks, a second one wants to."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.second = threading.Thread(target=fork)
        self.is_second_ready = threading.Event()

    def before_fork(self) -> None:
        self.calls.append("before")
        if len(self.calls) > 1:
            self.is_second_ready.set()
        else:
            self.second.start()
            self.is_second_ready.wait(0.1)  # it must not come

    def after_fork(self) -> None:
        self.calls.append("after")


def fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def use_threads(address: str, token: str) -> None:
    """Fork in two threads at a time."""
    recorder = Recorder()
    forks.prepare(recorder)
    fork()
    recorder.second.join()
    print(recorder.calls)  # noqa: T201 - what the test reads


if __name__ == "__main__":
    {"sync": use_sync, "async": use_async, "threads": use_threads}[sys.argv[1]](*sys.argv[2:])
