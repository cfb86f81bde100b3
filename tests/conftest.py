"""Eight virtual CPU devices for every test, no network, and each program compiled once."""

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["JAX_PLATFORMS"] = "cpu"  # of the processes that tests start

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Many tests run the same little training step: only the first of them compiles it.
cache = tempfile.mkdtemp(prefix="must_jax_tests_")
atexit.register(shutil.rmtree, cache, ignore_errors=True)
jax.config.update("jax_compilation_cache_dir", cache)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
# The processes that tests start, likewise.
os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"


@pytest.fixture(scope="module")
def starter(tmp_path_factory):
    """Starts `must_jax.main` in processes that need not import it."""
    from forked_main import Starter

    starter = Starter(tmp_path_factory.mktemp("started"))
    yield starter
    starter.close()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """The folder of what `tiny_run.config` reads."""
    import tiny_run

    return tiny_run.write_all(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    """The workdir of a finished run."""
    import tiny_run

    from must_jax.train import train

    workdir = tmp_path_factory.mktemp("runs") / "finished"
    train(tiny_run.config(inputs), str(workdir))
    return workdir


@pytest.fixture
def workdir(finished, tmp_path):
    """A copy of it."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    """The workdir of the run of a module's `config`, which nothing disturbs."""
    from long_run import run_undisturbed

    return run_undisturbed(config, tmp_path_factory.mktemp("runs"))
