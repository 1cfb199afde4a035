"""Checks that matplotlib is installed."""


def check_matplotlib() -> None:
    """Raise an ImportError that says what to install, if matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError("hessext.plot needs matplotlib: pip install matplotlib") from error
