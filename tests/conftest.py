"""Eight virtual CPU devices for every test, no network, and each program compiled once."""

import os
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Many tests run the same little training step: only the first of them compiles it.
jax.config.update("jax_compilation_cache_dir", tempfile.mkdtemp(prefix="must_jax_tests_"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
