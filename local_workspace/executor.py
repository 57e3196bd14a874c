"""The batch executor: hands mini-batches out to workers, tries again, counts, writes the rows.

The rules are those of Azure ML's batch executor (Microsoft's how-to-batch-scoring-script,
how-to-use-batch-model-deployments and how-to-troubleshoot-batch-endpoints).

Rows are written in the order of the input, so that a run can be repeated to the byte, and resumed (see
journal.py). What is kept in memory does not grow with the number of files: mini-batches are handed out at
most WINDOW ahead of the oldest that is still open.
"""

from __future__ import annotations

import selectors
import time
from collections import deque
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from itertools import count, islice

from local_workspace.answer import NoAnswerError, Raised, Rows
from local_workspace.guard import Guard
from local_workspace.instance import Instance, Job, Worker
from local_workspace.job_logs import JobLogs
from local_workspace.journal import Counts, Journal
from local_workspace.listing import MiniBatch, read_paths, split_into_mini_batches
from local_workspace.reasons import LONGEST_REASON, cut
from local_workspace.watch import Watch

WINDOW = 64  # mini-batches a worker
TICK = 0.2  # seconds between two looks at the clock
SHUTDOWN = 30  # seconds that shutdown() may take
LONGEST = 2 * LONGEST_REASON  # characters of a reason: the worker has cut it, and said what it cut
INIT_FAILURES = 3  # of each worker of an instance, on average, until the instance is given up


class JobFailed(Exception):
    """The job ends as Failed; the message is the cause, in one line."""


@dataclass
class Result:
    """What came of a mini-batch in the end."""

    mini_batch: MiniBatch
    rows: int
    text: str
    failed: list[tuple[str, str]]  # file, reason
    seconds: float
    worker: Worker
    attempts: int


@dataclass
class Executor:
    """One job's run. `interrupted` may be set at any time, also by a signal's handler.

    `counts` is ahead of the journal's: a mini-batch is finished before those in front of it are written.
    """

    job: Job
    journal: Journal
    logs: JobLogs
    on_progress: Callable[[Counts], None]
    interrupted: bool = False
    workers: list[Worker] = field(default_factory=list)
    attempts: dict[int, int] = field(default_factory=dict)  # of the mini-batches that failed once
    again: deque[MiniBatch] = field(default_factory=deque)
    finished: dict[int, Result] = field(default_factory=dict)  # and not yet written
    last_error: str = ""
    first_ready: float = 0  # when a worker had first done its init(), by time.monotonic()
    last_finished: float = 0  # when the last mini-batch so far was finished

    def __post_init__(self) -> None:
        deployment = self.job.deployment
        self.deployment = deployment
        self.counts = replace(self.journal.counts)
        self.written = self.counts.processed  # mini-batches
        self.resumed = self.counts.succeeded  # files that an earlier run has scored
        used = min(deployment.instance_count, self.counts.mini_batches)
        self.instances = [Instance(f"instance{number}") for number in range(used)]
        mini_batches = split_into_mini_batches(self.job.listing, deployment.mini_batch_size)
        self.fresh = islice(mini_batches, self.written, None)
        self.selector = selectors.DefaultSelector()
        self.watch = Watch()
        self.looked_after = 0.0  # when the workers were, by the watch

    def run(self) -> None:
        """Scores everything. Raises JobFailed with the cause, or KeyboardInterrupt once `interrupted`.

        However it ends, no worker is left, and the rows that there are have been written.
        """
        try:
            with closing(Guard()) as self.guard:
                self.work()
        except OSError as error:  # a full disk, or as many files or processes as the system allows
            raise JobFailed(f"{error.filename or 'the executor'}: {error.strerror}") from None
        finally:
            with suppress(OSError):  # the same full disk: what is not written does not count
                for number in sorted(self.finished):
                    self.write(self.finished[number])
        if not self.counts.succeeded:
            raise JobFailed(f"No succeeded mini batch item returned from run(). {self.last_error}".rstrip())

    def work(self) -> None:
        try:
            self.check_threshold()
            while self.counts.processed < self.counts.mini_batches:
                self.start_workers()
                self.hand_out()
                self.wait()
            self.shut_down()
        finally:
            for worker in list(self.workers):
                self.remove(worker)
            self.selector.close()

    # --- workers

    def start_workers(self) -> None:
        """Fills the instances up with workers, but not with more than there are mini-batches left."""
        left = self.counts.mini_batches - self.counts.processed
        most = INIT_FAILURES * self.deployment.max_concurrency_per_instance
        alive = [instance for instance in self.instances if instance.failed_inits < most]
        if not alive and not self.workers:
            raise JobFailed(f"init() failed {most} times on each instance. {self.last_error}")
        for instance in alive:
            staff = sum(worker.instance is instance for worker in self.workers)
            for _ in range(
                min(self.deployment.max_concurrency_per_instance - staff, left - len(self.workers))
            ):
                taken = {worker.slot for worker in self.workers}
                slot = next(slot for slot in count() if slot not in taken)
                worker = Worker(self.job, instance, slot, self.guard, self.watch)
                self.workers.append(worker)
                self.selector.register(worker.pipe, selectors.EVENT_READ, worker)

    def remove(self, worker: Worker, wait: float = 0) -> str:
        self.selector.unregister(worker.pipe)
        self.workers.remove(worker)
        return worker.end(wait)

    def shut_down(self) -> None:
        """Lets the workers that are ready call shutdown() and end, all at the same time."""
        for worker in self.workers:
            worker.dismiss()
        self.watch.look()
        until = self.watch.seconds + SHUTDOWN
        for worker in self.workers:
            while worker.ready and not worker.has_ended(TICK) and self.watch.seconds < until:
                self.watch.look()

    # --- mini-batches

    def hand_out(self) -> None:
        for worker in self.workers:
            if worker.ready and not worker.mini_batch:
                mini_batch = self.next_mini_batch()
                if not mini_batch:
                    return
                worker.order(mini_batch, self.deployment.timeout)

    def next_mini_batch(self) -> MiniBatch | None:
        if self.again:
            return self.again.popleft()
        open_ones = len(self.finished) + sum(worker.mini_batch is not None for worker in self.workers)
        if open_ones > WINDOW * self.deployment.workers:
            return None
        return next(self.fresh, None)

    def wait(self) -> None:
        """Takes the answers that are there, or waits a moment for one; then looks after the workers.

        The clock is read before the answers are: what has come by then is never too late.
        """
        if self.interrupted:
            raise KeyboardInterrupt
        self.watch.look()
        for key, _ in self.selector.select(TICK):
            self.receive(key.data)
        if self.watch.seconds - self.looked_after >= TICK:
            self.looked_after = self.watch.seconds
            for worker in list(self.workers):
                self.look_after(worker)
            self.logs.shorten()
        self.on_progress(self.counts)

    def look_after(self, worker: Worker) -> None:
        """Notices a worker that has ended though its pipe is open, in what it has forked, or is overdue."""
        worker.shorten_logs()
        if worker.has_ended():
            while worker in self.workers and worker.has_more():  # its last words count
                self.receive(worker)
            if worker in self.workers:
                self.lose(worker)
        elif worker.is_overdue(self.deployment.timeout):
            doing = worker.doing
            self.remove(worker)
            self.fail(worker, f"{doing} took longer than the timeout of {worker.limit:g} s")

    def receive(self, worker: Worker) -> None:
        try:
            said = worker.receive()
        except EOFError:
            self.lose(worker)
            return
        except NoAnswerError:
            self.lose(worker, "stopped, since what came on its pipe is no answer")
            return
        if isinstance(said, Raised):
            worker.write_error(said.traceback)
            if said.fails_job:
                raise JobFailed(one_line(said.error))
            if not worker.ready:
                self.remove(worker, wait=1)
            self.fail(worker, f"{'run()' if worker.ready else 'init()'} raised {one_line(said.error)}")
        elif said and not worker.ready:
            worker.ready = True
            if self.job.profile:
                self.job.profile.begin(worker.process.pid)
            self.first_ready = self.first_ready or time.monotonic()
            self.logs.overview(f"{worker.instance.name} {worker.name}: ready")
        elif said:
            self.finish(worker, said, self.attempts.get(worker.mini_batch.number, 0) + 1)

    def lose(self, worker: Worker, why: str = "") -> None:
        how = self.remove(worker, wait=0 if why else 1)
        self.fail(worker, f"the worker ended during {worker.doing}: {why or how}")

    def fail(self, worker: Worker, reason: str) -> None:
        """Counts a failed attempt; the mini-batch is queued again, or its files have failed."""
        self.last_error = reason
        self.logs.overview(f"{worker.instance.name} {worker.name}: {reason}")
        mini_batch = worker.mini_batch
        if not mini_batch:
            worker.instance.failed_inits += not worker.ready
            return
        if worker.is_blameless:  # an attempt is a run() that has begun
            worker.mini_batch = None
            self.again.append(mini_batch)
            return
        attempt = self.attempts.get(mini_batch.number, 0) + 1
        self.attempts[mini_batch.number] = attempt
        if attempt < self.deployment.attempts:
            worker.mini_batch = None
            self.again.append(mini_batch)
        else:
            failed = [[path, reason] for path in read_paths(self.job.listing, mini_batch)]
            self.finish(worker, Rows(0, "", failed), attempt)

    def finish(self, worker: Worker, said: Rows, attempts: int) -> None:
        """Counts a mini-batch, and writes it as soon as all before it are written."""
        mini_batch, worker.mini_batch = worker.mini_batch, None
        self.attempts.pop(mini_batch.number, None)
        self.last_finished = time.monotonic()
        seconds = self.last_finished - worker.since
        failed = [(file, cut(reason, LONGEST)) for file, reason in said.failed]
        self.finished[mini_batch.number] = Result(
            mini_batch, said.rows, said.text, failed, seconds, worker, attempts
        )
        self.counts.add(mini_batch.files, said.rows, len(failed))
        if failed:
            self.last_error = "The last: {}: {}".format(*failed[-1])
        while self.written in self.finished:
            self.write(self.finished.pop(self.written))
            self.written += 1
        self.check_threshold()

    def check_threshold(self) -> None:
        threshold = self.deployment.error_threshold
        if 0 <= threshold < self.counts.failed:
            raise JobFailed(
                f"{self.counts.failed} failed files, more than the error_threshold of {threshold}. "
                f"{self.last_error}"
            )

    def write(self, result: Result) -> None:
        self.journal.write(
            result.mini_batch.number,
            result.mini_batch.files,
            result.rows,
            result.text,
            result.failed,
            result.attempts,
            result.worker.instance.name,
            result.worker.name,
            f"{result.seconds:.3f}",
        )


def one_line(text: str) -> str:
    return " ".join(cut(text, LONGEST).split())
