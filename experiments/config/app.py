"""What the binaries share: how they start, their common flag, errors of one line in place of tracebacks."""

import contextlib
import difflib
import errno
import functools
import logging
import os
import re
import sys
import types
from collections.abc import Callable, Iterator, Sequence

import absl.logging
import jax
from absl import app, flags

from experiments.config import help_page
from experiments.config.fields import UsageError
from sp_jax.data import DataError
from sp_jax.storage.checkpoints import CheckpointError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; a subfolder for each experiment where several run.")


@contextlib.contextmanager
def one_line_errors(argv: Sequence[str]) -> Iterator[None]:
    """Turn a user's mistakes into one line and exit code 2, and refuse arguments that are no flags."""
    try:
        if len(argv) > 1:
            raise UsageError(f"unexpected argument {argv[1]!r}; flags begin with --, lists have no spaces")
        yield
    except (UsageError, DataError, CheckpointError) as error:
        print(f"error: {_printable(str(error))}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        what = f"cannot write {error.filename or 'a file'} ({error.strerror})"
        print(f"error: {what}; what was there is as it was: make room, then go on (a run: --resume)", file=sys.stderr)
        sys.exit(2)


def check_devices() -> None:
    """Raise a `UsageError` where JAX has no device: JAX_PLATFORMS names one that is not there."""
    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:
        reason = (str(error) or "it is not there").splitlines()[0]
        raise UsageError(f"JAX finds no device for JAX_PLATFORMS={jax.config.jax_platforms}: {reason}") from None


def _printable(text):
    """On one line, whatever names a user typed."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def use_all_cores() -> None:
    """Make each CPU core a device, unless JAX has been told how many there are."""
    cores_are_set = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if jax.config.jax_num_cpu_devices <= 0 and not cores_are_set:
        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))


def use_compile_cache() -> None:
    """Keep compiled programs in `$XDG_CACHE_HOME/sp_jax/programs` (`~/.cache/…`), unless JAX has been told where: the
    second run of a setting starts at once. `JAX_ENABLE_COMPILATION_CACHE=false` turns it off."""
    if jax.config.jax_compilation_cache_dir is None:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        jax.config.update("jax_compilation_cache_dir", os.path.join(base, "sp_jax", "programs"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def start(main: Callable[[Sequence[str]], None]) -> None:
    """Start a binary with each CPU core as a device, so that lanes run side by side."""
    use_all_cores()
    use_compile_cache()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # λ on a terminal that cannot show it
    logger = logging.getLogger("sp_jax")
    logger.addHandler(logging.StreamHandler())
    logger.setLevel(logging.INFO)
    logger.propagate = False
    absl.logging.set_verbosity(absl.logging.WARNING)
    app.run(main, flags_parser=functools.partial(parse, sys.modules[main.__module__]))


def parse(binary: types.ModuleType, argv: Sequence[str]) -> list[str]:
    """Parse the flags as absl does, with our `--help`, and mistakes as one line; `binary` is the module that is run."""
    if {"--help", "-help", "-h", "-?"} & {*argv[1:]}:
        print(help_page.page(binary.__doc__, flags.FLAGS.get_key_flags_for_module(binary)))
        sys.exit(0)
    own = {flag.name for flag in flags.FLAGS.get_key_flags_for_module(binary)}
    try:
        before = {name: flags.FLAGS[name].present for name in flags.FLAGS}
        rest = flags.FLAGS(argv)
        for name, count in before.items():
            if flags.FLAGS[name].present > count and _is_ours(name) and name not in own:
                raise flags.UnrecognizedFlagError(name)
        return rest
    except (flags.Error, ValueError) as error:
        print(f"error: {_printable(_flag_mistake(error, own))} (--help lists all flags)", file=sys.stderr)
        sys.exit(2)


def _is_ours(name):
    """Return whether a flag is one of our binaries', rather than of a library."""
    return str(flags.FLAGS.find_module_defining_flag(name)).startswith("experiments.")


def _flag_mistake(error, own):
    """Return what absl says, in our words; `own` are the flags of the binary."""
    if isinstance(error, flags.UnrecognizedFlagError):
        name = error.flagname.replace("-", "_")
        known = [flag for group in help_page.GROUPS.values() for flag in group if flag in own]
        meant = help_page.SYNONYMS.get(name) or "".join(difflib.get_close_matches(name, known, n=1))
        return f"unknown flag --{error.flagname}" + f"; did you mean --{meant}?" * bool(meant)
    found = re.match(r"flag --(\w+)=(.*?): ", str(error), re.DOTALL)
    if found:
        expected = flags.FLAGS[found[1]].parser.syntactic_help or "true or false"
        return f"--{found[1]}={found[2]} must be {expected}"
    return str(error)
