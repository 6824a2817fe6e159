"""Programs that serve, each started for a test and ended with it."""

import contextlib
import os
import socket
import subprocess
import time

import httpx


def free_address():
    """An address of this machine with a port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@contextlib.contextmanager
def started(words, folder, address, **settings):
    """Waits until a program answers at its address; gives the file of what it says.

    Args:
        words: program and arguments; "{port}" among them is the address's.
        folder: where it runs.
        address: where it answers.
        settings: variables of its environment.
    """
    port = address.rpartition(":")[2]
    command = [str(word).replace("{port}", port) for word in words]
    with (folder / port).open("w") as said:
        how = {"cwd": folder, "env": os.environ | settings, "stdout": said, "stderr": said}
        process = subprocess.Popen(command, **how)
    try:
        answered = False
        while not answered:
            assert process.poll() is None, (folder / port).read_text()
            time.sleep(0.2)
            with contextlib.suppress(httpx.TransportError):
                answered = httpx.get(address, timeout=60).status_code < 500
        yield folder / port
    finally:
        process.terminate()
        process.wait()
