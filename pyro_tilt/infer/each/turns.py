# SPDX-License-Identifier: Apache-2.0
"""A function in a thread of its own, of which nothing runs but between two calls of `resume`."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

from pyro_tilt.infer.each.mode import TorchMode
from pyro_tilt.infer.each.world import World

__all__ = ["Turns"]


class _Stopped(BaseException):
    """Leaves the body of a thread whose result nobody waits for."""


class Turns:
    """
    A function that runs by turns, each with the state of the process as its last turn left it.

    :param body: the function; it may call :meth:`ask`.
    :param world: the state that it begins with.
    :param name: of its thread.
    :ivar question: what it waits to hear about.
    :ivar done: whether it has returned or raised.
    :ivar result: what it returned.
    :ivar error: what it raised.
    :ivar seconds: of its turns.
    """

    def __init__(self, body: Callable[[], Any], world: World, *, name: str) -> None:
        self.body, self.world = body, world
        self.question: Any = None
        self.result: Any = None
        self.error: BaseException | None = None
        self.done = False
        self.seconds = 0.0
        self._answer: Any = None
        self._running = self._stopping = False
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._mode = TorchMode.current()
        self._thread = threading.Thread(target=copy_context().run, args=(self._run,), name=name)

    def resume(self, answer: Any = None, present: World | None = None) -> None:
        """
        Lets it run until it asks or ends.

        :param answer: to its question.
        :param present: the state of the process, where it is known.
        """
        self.question, self._answer = None, answer
        self.world.install(present)
        started = time.perf_counter()
        self._running = True
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._go.release()
        while not self._back.acquire(timeout=1.0):
            # An interrupt that came to another thread is heard of between two waits.
            continue
        if self.done:
            self._thread.join()
        self._running = False
        self.seconds += time.perf_counter() - started
        self.world = World.current()

    def ask(self, question: Any) -> Any:
        """
        Ends the turn; called by the body.

        :param question: what it waits to hear about.
        :returns: the answer.
        """
        if not self._stopping:
            self.question = question
            self._back.release()
            self._go.acquire()
        if self._stopping:
            raise _Stopped
        return self._answer

    def stop(self) -> None:
        """Ends the thread by an exception in its body, so that its handlers are left in order."""
        self._stopping = True
        if self._thread.ident is None or not self._thread.is_alive():
            return
        if self._running:
            self._interrupt()
        else:
            self.world.install()
        self._go.release()
        while self._thread.is_alive():
            try:
                self._thread.join()
            except KeyboardInterrupt:
                self._interrupt()

    def _interrupt(self) -> None:
        """Only the main thread hears of an interrupt; this one is to hear of it where it stands."""
        assert self._thread.ident is not None
        place = ctypes.c_ulong(self._thread.ident)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(place, ctypes.py_object(KeyboardInterrupt))

    def _run(self) -> None:
        try:
            with self._mode.active():
                self.result = self.body()
        except BaseException as error:
            self.error = error
        finally:
            self.done = True
            self._back.release()
