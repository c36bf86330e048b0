"""Trains a policy as es-train was asked to, or continues a run; alone or as one of torchrun's ranks."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial

import torch
from rich.console import Console

from es_flipout.cli.arguments import TrainArguments, UsageError, parse_train
from es_flipout.cli.modules import check_modules
from es_flipout.cli.process import OutputConsole, silence_mujoco
from es_flipout.cli.stop_request import StopRequest
from es_flipout.cli.torchrun import check_ranks, continued, is_restarted, use_own_gpu
from es_flipout.rollout import ProcessGroup, Ranks, RanksLostError, RefusedError
from es_flipout.rollout.rank_contract import ALONE
from es_flipout.run.config import Config
from es_flipout.run.display import Display
from es_flipout.run.errors import RunBrokenError, RunError
from es_flipout.run.machine import describe_start
from es_flipout.run.placement import carried_over
from es_flipout.run.reporters.beside import ReporterBeside, close_together
from es_flipout.run.reporters.contract import Reporter, RunInfo
from es_flipout.run.reporters.find import FoundReporter, find_reporters
from es_flipout.run.reporters.names import TENSORBOARD
from es_flipout.run.run_directory import RunDirectory
from es_flipout.run.terminal import Terminal
from es_flipout.run.trainer import Trainer


def train(request: TrainArguments) -> int:
    """Trains as es-train was asked to, in this process; returns the exit status."""
    _prepare()
    return _lead(request, ALONE, lambda config: None)


def train_as_rank(arguments: Sequence[str]) -> int:
    """Trains as one of torchrun's ranks, of which rank 0 reads the arguments; returns the exit status."""
    _prepare()
    try:
        ranks = ProcessGroup.of_environment()
    except ValueError as error:
        raise UsageError(str(error)) from error
    with closing(ranks):
        if ranks.rank > 0:
            return _follow(ranks)
        try:
            return _lead(parse_train(arguments), ranks, ranks.publish)
        except BaseException:
            ranks.refuse()
            raise


def _prepare() -> None:
    # The cores are for the physics. One torch thread also keeps every sum in one order, so that results do
    # not depend on the number of cores.
    torch.set_num_threads(1)
    silence_mujoco()


def _lead(request: TrainArguments, ranks: Ranks, publish: Callable[[Config], None]) -> int:
    """Runs alone, or as rank 0: writes the run directory, and prints."""
    if request.is_auto or (is_restarted() and request.resume is None):
        request = continued(request)
    console = OutputConsole(highlight=False, markup=False, emoji=False, soft_wrap=True)
    check_modules(request.config)
    try:
        found = find_reporters(request.config.logging.reporters)
    except ValueError as error:
        raise UsageError(str(error)) from error
    check_ranks(request.config, ranks, resumes=request.resume is not None)
    use_own_gpu(request.config, ranks)
    if request.keeps_device:
        request = replace(request, config=carried_over(request.config, console.print))
    with closing(Display(console)) as display:
        return _run(request, found, ranks, publish, console, display)


def _run(
    request: TrainArguments,
    found: Sequence[FoundReporter],
    ranks: Ranks,
    publish: Callable[[Config], None],
    console: Console,
    display: Display,
) -> int:
    """Makes a run, or opens it, and trains."""
    try:
        continues = request.resume is not None and RunDirectory(request.resume).last.exists()
        trainer = Trainer(
            request.config,
            continues=continues,
            announce=console.print,
            ranks=ranks,
            publish=publish,
            onlooker=display,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    with closing(trainer), ExitStack() as stack:
        try:
            with display.doing("connecting the ranks"):
                _connect(ranks, trainer.config)
        except RefusedError as error:
            raise UsageError(str(error)) from error
        run = _open_run(request, trainer, stack)
        name = shlex.quote(str(run.path))
        trainer.synchronize()
        if trainer.finished:
            trainer.wait_for_ranks()
            console.print(f"{run.path} has already used up its budget ({trainer.es.generation} generations)")
            return 0
        action = f"continues after generation {trainer.es.generation}" if request.resume else "starts"
        if ranks.size > 1:
            action += f" on {ranks.size} ranks"
        if trainer.config.init_from is not None and not request.resume:
            action += f" with the policy of {trainer.config.init_from}"
        is_on_board = any(each.name == TENSORBOARD for each in found)
        follow = f"; follow it with: tensorboard --logdir {name}" if is_on_board else ""
        console.print(f"run {run.path} {action}{follow}")
        stop = StopRequest(ranks=ranks)
        stack.callback(stop.restore)
        try:
            if request.resume:
                run.write_config(trainer.config)
            run.add_start(describe_start(trainer.config.device, ranks.size))
            reporters = _reporters(request, found, trainer, run, console, display, stack)
            trainer.train(run, reporters, stop)
            if is_whole := trainer.progress >= 1.0 and not trainer.awaits_score:
                trainer.wait_for_ranks()
        except RunBrokenError as error:
            if not run.config.exists():
                raise
            advice = f"once that is mended, continue with: es-train --resume {name}"
            raise RunBrokenError(f"{error}; {advice}") from error
    if stop() or not is_whole:  # perhaps another rank was asked to stop
        where = f"generation {trainer.es.generation}{', not scored yet' if trainer.awaits_score else ''}"
        console.print(f"stopped after {where}; continue with: es-train --resume {name}")
    else:
        console.print(f"finished; score it with: es-eval {name}")
    return stop.exit_status


def _follow(ranks: ProcessGroup) -> int:
    """Runs as a rank other than 0, which writes nothing, and says only what rank 0 cannot say."""
    try:
        config: Config = ranks.published()
        try:
            check_modules(config)
            use_own_gpu(config, ranks)
            trainer = Trainer(config, continues=True, ranks=ranks)
        except ValueError as error:
            _connect(ranks, config, problem=str(error))
            raise
        with closing(trainer):
            _connect(ranks, config)
            trainer.synchronize()
            stop = StopRequest(ranks=ranks)
            trainer.train(None, should_stop=stop)
            if trainer.progress >= 1.0:
                trainer.wait_for_ranks()
            return stop.exit_status
    except RefusedError:
        return 2
    except RunError as error:
        cause = error.__cause__
        if isinstance(cause, RanksLostError) and 0 in cause.ranks:
            raise
        return error.exit_status


def _connect(ranks: Ranks, config: Config, problem: str | None = None) -> None:
    """Connects the ranks.

    Raises:
        RefusedError: if one of them cannot begin.
    """
    ranks.start(problem, timeout=config.rank_timeout, device=config.device)


def _open_run(request: TrainArguments, trainer: Trainer, stack: ExitStack) -> RunDirectory:
    if request.resume is None:
        run = RunDirectory.create(trainer.config)
        stack.enter_context(run.locked())
        return run
    run = RunDirectory.open(request.resume)
    stack.enter_context(run.locked())
    trainer.restore(run)
    return run


def _reporters(
    request: TrainArguments,
    found: Sequence[FoundReporter],
    trainer: Trainer,
    run: RunDirectory,
    console: Console,
    display: Display,
    stack: ExitStack,
) -> list[Reporter]:
    """Makes the reporters, which the stack closes."""
    info = RunInfo(run.path, trainer.config, trainer.reported_env_steps if request.resume else None)
    reporters: list[Reporter] = []
    stack.push(partial(_close, reporters, found, display))
    for each in found:
        reporters.append(each.make(info, console.print))
    share = trainer.progress if request.config.has_budget else None
    return [*reporters, Terminal(console, share, display)]


def _close(
    reporters: Sequence[Reporter],
    found: Sequence[FoundReporter],
    display: Display,
    error: type[BaseException] | None,
    *_: object,
) -> None:
    """Closes the reporters that have been made. Who interrupts a run, or this, waits for none."""
    beside = {}
    for reporter, of in zip(reporters, found, strict=False):
        if isinstance(reporter, ReporterBeside):
            beside[reporter] = of.name
        else:
            reporter.close()
    if error is not None and issubclass(error, KeyboardInterrupt):
        for each in beside:
            each.abort()
    if beside:
        with display.doing(f"waiting for {', '.join(beside.values())} to end"):
            close_together(list(beside))
