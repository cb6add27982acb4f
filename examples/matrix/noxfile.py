"""Makes an environment for each framework, and runs the tests in it."""

import nox


@nox.session
@nox.parametrize("backend", ["numpy", "torch", "mindspore"])
def tests(session: nox.Session, backend: str) -> None:
    """Run the tests, which compare the model in one framework with the same model in NumPy."""
    # in a project outside of this checkout: f"unirnn[testing,{backend}]"
    session.install(f"../..[testing,{backend}]", "-e", ".")
    session.run("pytest", f"--rnn-backends={backend}", *session.posargs)
