"""An environment for each framework, with the tests in it."""

import nox


@nox.session
@nox.parametrize("backend", ["numpy", "torch", "mindspore"])
def tests(session: nox.Session, backend: str) -> None:
    """The model in one framework, compared with the same model in NumPy."""
    # in a project outside of this checkout: f"unirnn[testing,{backend}]"
    session.install(f"../..[testing,{backend}]", "-e", ".")
    session.run("pytest", f"--rnn-backends={backend}", *session.posargs)
