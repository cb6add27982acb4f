from .app import app, parse_spec

__all__ = ["app", "parse_spec"]
