"""What adeptml's contract asks of a solver: memory, dtypes, threads, and nothing global."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adeptml_core import registry
from adeptml_core.errors import ConfigError, InputError
from adeptml_core.solver import named
from adeptml_pendulum_jax import solver
from adeptml_pendulum_jax.solver import example, forward, jvp

OPTIONS = {"dt": 0.05, "steps": 20, "substeps": 2}
EVENT = "/jax/core/compile/backend_compile_duration"


def aligned(values):
    """Return a copy on a 64-byte boundary, where JAX would take the memory over without a copy."""
    room = np.empty(values.nbytes + 64, dtype=np.uint8)
    start = -room.ctypes.data % 64
    array = room[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    array[...] = values
    return array


def read_only(array):
    """Return a view that cannot be written through, as core hands it to a solver."""
    view = array.view()
    view.flags.writeable = False
    return view


@pytest.fixture
def inputs():
    """Return (x, params, g): writeable and aligned; four samples, so that nothing is padded."""
    rng = np.random.default_rng(3)
    return *map(aligned, example(rng, 4)), aligned(rng.normal(size=(4, 20, 2)))


def assert_equal(got, expected):
    """Equal inputs run the same program: the results agree to the last bit."""
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one, other)


# ---- memory ------------------------------------------------------------------------------------


def test_inputs_may_be_read_only_and_stay_as_they_are(inputs):
    """Read-only arrays serve, and neither half writes to what it was given."""
    before = [array.copy() for array in inputs]
    x, params, g = map(read_only, inputs)
    forward(x, params, **OPTIONS)[1](g)
    jvp(x, x, params, **OPTIONS)
    assert_equal(inputs, before)


@pytest.mark.parametrize("shared", [False, True])
def test_pullback_does_not_read_the_callers_arrays(inputs, shared):
    """After forward the caller may overwrite x and params; the pullback has copies of its own."""
    x, params, g = inputs
    params = aligned(params[0]) if shared else params
    expected = forward(x.copy(), params.copy(), **OPTIONS)[1](g)
    _, pullback = forward(x, params, **OPTIONS)
    x[...], params[...] = 0.1, 9.0
    assert_equal(pullback(g), expected)


def test_jax_is_never_handed_the_callers_memory(inputs, monkeypatch):
    """JAX may take over an aligned array without a copy; it only ever sees private ones."""
    x, params, g = inputs
    handed = []

    def spied(compiled):
        def call(*args, **options):
            handed.extend(value for value in args if isinstance(value, np.ndarray))
            return compiled(*args, **options)

        return call

    for name in ("_linearized", "_transposed", "_pushed"):
        monkeypatch.setattr(solver, name, spied(getattr(solver, name)))
    forward(x, params, **OPTIONS)[1](g)
    forward(x, params[0], **OPTIONS)
    jvp(x, x, params, **OPTIONS)
    assert len(handed) == 2 + 1 + 2 + 3
    assert not any(np.shares_memory(value, given) for value in handed for given in inputs)


def test_results_are_the_callers_own(inputs):
    """y, dx, dparams and dy are writeable arrays that own their memory, and new ones each time."""
    x, params, g = inputs
    y, pullback = forward(x, params, **OPTIONS)
    results = [y, *pullback(g), *pullback(g), jvp(x, x, params, **OPTIONS)]
    for index, array in enumerate(results):
        assert type(array) is np.ndarray
        assert array.flags.owndata
        assert array.flags.writeable
        assert array.flags.c_contiguous
        assert not any(np.shares_memory(array, other) for other in (*results[:index], *inputs))


def test_writing_to_results_changes_no_later_gradient(inputs):
    """An in-place edit of y, or of a cotangent that came back, does not reach the pullback."""
    x, params, g = inputs
    y, pullback = forward(x, params, **OPTIONS)
    first = pullback(g)
    expected = [array.copy() for array in first]
    y[...] = 0.0
    for array in first:
        array[...] = 0.0
    assert_equal(pullback(g), expected)


# ---- the pullback's life -----------------------------------------------------------------------


def test_pullback_may_be_called_after_other_forwards(inputs):
    """Two forwards, then the first pullback, the second, and the first again."""
    x, params, g = inputs
    first = forward(x, params, **OPTIONS)[1]
    expected = first(g)
    second = forward(x[::-1].copy(), params, **OPTIONS)[1]
    different = second(g)
    assert_equal(first(g), expected)
    assert_equal(second(g), different)
    assert np.abs(different[0] - expected[0]).max() > 1e-3


def test_threads_get_the_results_of_one(inputs):
    """Eight threads, forward and pullback in float64, as if each were alone."""
    x, params, g = inputs
    scales = np.linspace(0.3, 1.0, 16)

    def both(scale):
        y, pullback = forward(scale * x, params, **OPTIONS)
        return y, *pullback(g)

    expected = [both(scale) for scale in scales]
    with ThreadPoolExecutor(8) as pool:
        for got, alone in zip(pool.map(both, scales), expected, strict=True):
            assert_equal(got, alone)


def test_a_pullback_may_be_called_in_another_thread(inputs):
    """Autograd's backward runs in a thread of its own, where no precision has been set."""
    x, params, g = inputs
    _, pullback = forward(x, params, **OPTIONS)
    with ThreadPoolExecutor(1) as pool:
        assert_equal(pool.submit(pullback, g).result(), pullback(g))


# ---- dtypes ------------------------------------------------------------------------------------


def test_float32_is_computed_in_float64_and_cast_back(inputs):
    """float32 in, float32 out, and the float64 result rounded once."""
    x, params, g = (array.astype(np.float32) for array in inputs)
    y, pullback = forward(x, params, **OPTIONS)
    got = [y, *pullback(g), jvp(x, x, params, **OPTIONS)]
    x, params, g = (array.astype(np.float64) for array in (x, params, g))
    y, pullback = forward(x, params, **OPTIONS)
    exact = [y, *pullback(g), jvp(x, x, params, **OPTIONS)]
    assert [array.dtype for array in got] == [np.float32] * 4
    assert [array.dtype for array in exact] == [np.float64] * 4
    assert_equal(got, [array.astype(np.float32) for array in exact])


def test_an_integer_x_does_not_truncate_the_trajectory():
    """Nor do integer params."""
    whole = forward(np.array([[2, 0]]), np.array([1, 0, 0, 0]), **OPTIONS)[0]
    np.testing.assert_array_equal(
        whole, forward(np.array([[2.0, 0.0]]), np.array([1.0, 0, 0, 0]), **OPTIONS)[0]
    )


def test_an_empty_batch_has_an_empty_trajectory():
    """And an empty cotangent; what the samples would share gets zeros."""
    y, pullback = forward(np.empty((0, 2)), np.array([1.0, 0.1, 0.0, 0.0]), **OPTIONS)
    dx, dparams = pullback(y)
    assert (y.shape, dx.shape, dparams.tolist()) == ((0, 20, 2), (0, 2), [0.0] * 4)


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        (((3, 4), (4,)), r"x is float64 of shape \(3, 4\); it must be real, of shape \(3, 2\)"),
        (((3, 2), (1, 4)), r"params .* of shape \(4,\) or \(3, 4\)"),
        (((3, 2), (3,)), r"params .* of shape \(4,\) or \(3, 4\)"),
    ],
)
def test_a_wrong_shape_is_an_input_error(shapes, said):
    """Nothing is broadcast that the contract does not allow."""
    with pytest.raises(InputError, match=said):
        forward(*map(np.ones, shapes), **OPTIONS)


def test_a_wrong_cotangent_is_an_input_error(inputs):
    """A row more would be taken for one of the rows that pad the batch, and be counted."""
    x, params, _ = inputs
    _, pullback = forward(x[:3], params[:3], **OPTIONS)
    with pytest.raises(InputError, match=r"grad_output .* of shape \(3, 20, 2\)"):
        pullback(np.ones((4, 20, 2)))
    with pytest.raises(InputError, match="dx is complex128"):
        jvp(x, x + 0j, params, **OPTIONS)


@pytest.mark.parametrize("wrong", [{"dt": np.nan}, {"dt": 0.0}, {"steps": 0}, {"substeps": 0}])
def test_a_wrong_option_is_a_config_error(inputs, wrong):
    """In a direct call, too."""
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} = "):
        forward(*inputs[:2], **OPTIONS | wrong)


def test_a_strict_user_gets_the_same(inputs):
    """What JAX may be told to forbid is allowed in here, and forbidden again outside."""
    x, params, g = inputs
    y, pullback = forward(x, params, **OPTIONS)
    one, two = jnp.ones(2), jnp.ones((2, 2))
    with (
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
        jax.transfer_guard("disallow"),
    ):
        strict, strict_pullback = forward(x, params, **OPTIONS)
        gradients = strict_pullback(g)
        with pytest.raises(ValueError, match="rank"):
            one + two
    np.testing.assert_array_equal(strict, y)
    for got, expected in zip(gradients, pullback(g), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_is_told_instead_of_standing_still():
    """JAX's threads stay behind in the parent."""
    program = """if True:
        import os, sys, warnings
        import numpy as np
        from adeptml_pendulum_jax.solver import forward
        warnings.simplefilter("ignore")
        def run():
            forward(np.ones((1, 2)), np.ones(4), dt=0.05, steps=2, substeps=1)
        run()
        child = os.fork()
        if child == 0:
            try:
                run()
            except RuntimeError as error:
                print(error, flush=True)
            os._exit(0)
        os.waitpid(child, 0)
    """
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    assert "JAX does not survive a fork" in run.stdout


def test_the_pullback_keeps_six_numbers_for_each_step(inputs):
    """Not the sixty of its stages."""
    x, params, _ = inputs
    with solver._settings():
        _, transpose, _ = solver._linearized(x, params, 0.05, steps=500, substeps=2)
        kept = sum(leaf.nbytes for leaf in jax.tree.leaves(transpose))
    assert 0.9 < kept / (len(x) * 500 * 2 * 48) < 1.1


def test_the_users_precision_stays_what_it_was(inputs):
    """JAX's own default is float32 before, between and after; ours is float64 throughout."""
    x, params, g = inputs
    assert jnp.ones(1).dtype == jnp.float32
    y, pullback = forward(x, params, **OPTIONS)
    assert jnp.ones(1).dtype == jnp.float32
    dx, _ = pullback(g)
    assert jnp.ones(1).dtype == jnp.float32
    assert not jax.config.jax_enable_x64
    assert y.dtype == dx.dtype == np.float64


def test_a_user_who_has_set_double_precision_gets_the_same(inputs):
    """With the flag on, as some users have it, nothing is different."""
    x, params, g = inputs
    y, pullback = forward(x, params, **OPTIONS)
    with jax.enable_x64(True):
        y_too, pullback_too = forward(x, params, **OPTIONS)
        assert_equal((y_too, *pullback_too(g)), (y, *pullback(g)))
    assert_equal(pullback_too(g), pullback(g))


# ---- compilation -------------------------------------------------------------------------------


@pytest.fixture
def compilations():
    """Return the list to which JAX's compiler adds one entry each time that it runs."""
    seen = []

    def listener(event, duration, **details):
        if event == EVENT:
            seen.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listener)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listener)


def run(batch, dt=0.05):
    """Run both halves at that batch size, with steps that no other test has compiled."""
    x, params = example(np.random.default_rng(batch), batch)
    y, pullback = forward(x, params, dt=dt, steps=3, substeps=1)
    pullback(y)


@pytest.mark.slow
def test_nine_batch_sizes_compile_four_programs(compilations):
    """Sizes 2 to 10 are padded to 2, 4, 8, 16: each of the two halves is compiled four times."""
    for batch in range(2, 11):
        run(batch)
    assert len(compilations) == 2 * 4


def test_another_time_step_compiles_nothing(compilations):
    """Dt is an argument of the program, not a constant in it: only shapes compile."""
    run(2)
    compilations.clear()
    run(2, dt=0.04)
    assert compilations == []


# ---- the plugin --------------------------------------------------------------------------------


def in_new_process(program):
    """Run a program in a fresh interpreter and return what it prints."""
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_light_module_imports_neither_jax_nor_numpy():
    """Listing the solver costs no import but adeptml's light floor."""
    program = (
        "import sys, adeptml_pendulum_jax.plugin\n"
        "print(sorted({'jax', 'jaxlib', 'numpy', 'scipy', 'torch'} & set(sys.modules)))"
    )
    assert in_new_process(program) == "[]"


def test_without_jax_the_error_says_how_to_get_it():
    """A missing jax is one line that ends in the command which installs it."""
    program = (
        "import sys; sys.modules['jax'] = None\n"
        "try:\n    import adeptml_pendulum_jax.solver\n"
        "except ModuleNotFoundError as error:\n    print(error.name, error, sep='|')"
    )
    name, message = in_new_process(program).split("|")
    assert name == "jax"
    assert message.endswith("pip install 'jax>=0.10'")


def test_the_installed_entry_point_gives_the_spec():
    """The solver is found by name; its requirements are met; the functions it names exist."""
    found = named("pendulum_jax")
    assert found.spec.name == "pendulum-jax"
    assert registry.missing_requirements(found.spec) == ()
    assert [found.function(role) for role in ("forward", "jvp", "example")] == [
        forward,
        jvp,
        example,
    ]


def test_default_options_are_those_of_the_documentation():
    """Through core, with no options given: 40 states, 0.05 s apart, the first at 0.05 s."""
    x, params = example(np.random.default_rng(0), 2)
    y, pullback = named("pendulum-jax").linearize(x, params)
    assert y.shape == (2, 40, 2)
    np.testing.assert_array_equal(y, forward(x, params, dt=0.05, steps=40, substeps=2)[0])
    assert [array.shape for array in pullback(np.ones_like(y))] == [(2, 2), (2, 4)]
